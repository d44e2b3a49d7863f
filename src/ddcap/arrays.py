"""Arrays of numpy and tensors of torch alike: what decoding needs beside the array API standard.

Decoding is mathematics on small arrays. It is written once, against the array API standard, and serves the
light runtime (numpy) and PyTorch, on any device.

PyTorch gets the standard by `array_api_compat`. numpy has it from 2.1 on, but for one argument; the package's
numpy half would load all of numpy's parts, which takes a tenth of a command's time.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from array_api_compat import device, is_torch_array

Array = Any
"""A numpy array or a torch tensor."""

__all__ = ["Array", "array_namespace", "device", "draw_uniform", "like", "log_sum_exp", "raise_at", "to_host"]


class _Numpy:
    """numpy, with the standard's `argsort`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def argsort(
        values: np.ndarray, *, axis: int = -1, descending: bool = False, stable: bool = True
    ) -> np.ndarray:
        """Places of `values` in their order; of equals, the first comes first, also in descending order."""
        kind: Literal["stable", "quicksort"] = "stable" if stable else "quicksort"
        if not descending:
            return np.argsort(values, axis=axis, kind=kind)
        backwards = np.argsort(np.flip(values, axis=axis), axis=axis, kind=kind)
        return values.shape[axis] - 1 - np.flip(backwards, axis=axis)


_NUMPY = _Numpy()


def array_namespace(array: Array) -> Any:
    """The functions of the array API standard for what `array` is."""
    if is_torch_array(array):
        import array_api_compat

        return array_api_compat.array_namespace(array)
    return _NUMPY


def like(values: Any, array: Array) -> Array:
    """`values` (numpy, or plain numbers) as what `array` is: numpy's or torch's, on the same device."""
    values = np.asarray(values)
    if is_torch_array(array):
        import torch

        return torch.from_numpy(np.array(values)).to(array.device)  # a copy: it can be written to
    return values


def to_host(array: Array) -> np.ndarray:
    """`array` as numpy's; waits for a GPU."""
    if is_torch_array(array):
        array = array.detach().cpu()
        # numpy has no bfloat16
        array = (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
    return np.asarray(array)


def draw_uniform(generator: np.random.Generator | None, shape: tuple[int, ...], array: Array) -> Array:
    """Uniform numbers in [0, 1), float32, as what `array` is.

    They are numpy's, whatever the runtime and device: the same seed draws the same caption everywhere.
    """
    generator = generator if generator is not None else np.random.default_rng()
    return like(generator.random(shape, dtype=np.float32), array)


def log_sum_exp(values: Array) -> Array:
    """Log sum exp over the last axis; -inf counts as nothing."""
    if is_torch_array(values):
        return values.logsumexp(-1)
    highest = values.max(axis=-1, keepdims=True)
    return np.log(np.exp(values - highest).sum(axis=-1)) + highest[..., 0]


def raise_at(array: Array, rows: Array, columns: Array, values: Array) -> Array:
    """`array` (R, C) with each place (row, column) raised to its value, if it is lower; places may repeat."""
    if is_torch_array(array):
        places = rows * array.shape[1] + columns
        return array.flatten().scatter_reduce(0, places, values, "amax").view_as(array)
    raised = array.copy()
    np.maximum.at(raised, (rows, columns), values)
    return raised
