"""Weights as 8-bit integers with a scale for each output: a quarter of the bytes, the same file for all.

Both runtimes read the same integers, so they compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ddcap.arrays import Array, array_namespace

SCALE = "#scale"
"""What the name of a quantised weight's scales ends in."""

_SMALLEST = 65_536  # numbers of a matrix; smaller ones are not worth it


def is_quantised(value: np.ndarray) -> bool:
    """Whether a weight is one to store in 8 bits: a large matrix, of a linear layer or an embedding."""
    return value.ndim == 2 and value.size >= _SMALLEST and np.issubdtype(value.dtype, np.floating)


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`weight` (outputs, inputs) as integers from -127 to 127, and float32 scales (outputs,)."""
    scale = np.abs(weight).max(axis=1).astype(np.float32) / 127
    scale[scale == 0] = 1  # a row of zeros
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def in_float32(stored: Array, scale: Array | None = None) -> Array:
    """A stored weight, of numpy or torch, in float32: what integers mean with their scales (outputs,).

    Numbers that are no weights stay as they are.
    """
    xp = array_namespace(stored)
    if scale is not None:
        return xp.astype(stored, xp.float32) * xp.astype(scale, xp.float32)[:, None]
    return xp.astype(stored, xp.float32) if xp.isdtype(stored.dtype, "real floating") else stored


def quantise_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights by name, the large matrices in 8 bits with their scales beside them.

    Of the rest, what has more than one dimension is float16, and the few single rows stay float32.
    """
    stored = {}
    for name, value in state.items():
        if is_quantised(value):
            stored[name], stored[name + SCALE] = quantise(value)
        elif value.ndim > 1 and np.issubdtype(value.dtype, np.floating):
            stored[name] = value.astype(np.float16)
        else:
            stored[name] = value
    return stored


def dequantise_state(stored: Mapping[str, Array]) -> dict[str, Array]:
    """Inverse of `quantise_state`, for files of other types too: all weights in float32."""
    return {
        name: in_float32(value, stored.get(name + SCALE))
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }
