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

__all__ = [
    "Array",
    "any_in_column",
    "array_namespace",
    "device",
    "draw_uniform",
    "like",
    "log_sum_exp",
    "places_of",
    "raise_columns",
    "to_host",
]


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
    """`values` (numpy, or plain numbers) as what `array` is: numpy's or torch's, on the same device.

    It does not wait for a GPU: the values lie page-locked, and are copied when their turn comes.
    """
    values = np.asarray(values)
    if is_torch_array(array):
        import torch

        tensor = torch.from_numpy(np.array(values))  # a copy: it can be written to
        if array.device.type == "cuda":
            return tensor.pin_memory().to(array.device, non_blocking=True)
        return tensor.to(array.device)
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


def places_of(is_wanted: Array) -> Array:
    """(n,) places where `is_wanted` (N,) is True, for a search of these alone; on a GPU all N.

    To know which they are one would wait for a GPU, for which looking everywhere costs less. So what follows
    must be right for places that are not wanted, too.
    """
    xp = array_namespace(is_wanted)
    if is_torch_array(is_wanted) and _is_waited_for(is_wanted):
        return xp.arange(is_wanted.shape[0], device=device(is_wanted))
    return xp.nonzero(is_wanted)[0]


def _is_waited_for(tensor: Any) -> bool:
    """Return True if a tensor is on a device that computes while Python goes on."""
    return bool(tensor.device.type != "cpu")


def raise_columns(array: Array, columns: Array, values: Array) -> Array:
    """Raise `array` (R, C), of 0 or more, at columns (n,) to `values` (R, n); columns may repeat."""
    if is_torch_array(array):
        return array.scatter_reduce(1, columns.expand(values.shape), values, "amax")
    raised = array.copy()
    rows, places = np.nonzero(values > 0)  # few
    np.maximum.at(raised, (rows, columns[places]), values[rows, places])
    return raised


def any_in_column(found: Array, columns: Array, count: int) -> Array:
    """(R, count) True at the columns (n,) where `found` (R, n) is True; columns may repeat."""
    if is_torch_array(found):
        xp = array_namespace(found)
        nowhere = xp.zeros((found.shape[0], count), dtype=xp.int64, device=device(found))
        return nowhere.index_add(1, columns, found.long()) > 0
    result = np.zeros((found.shape[0], count), dtype=bool)
    rows, places = np.nonzero(found)
    result[rows, columns[places]] = True
    return result
