"""Weights as 8-bit integers with a scale for each output: a quarter of the bytes, the same file for all.

Both runtimes read the same integers, so they compute with the same weights.

Weights that are multiplied as integers, too, are scaled so that the products are exact on every processor.
x86 without VNNI multiplies them with eight unsigned bits, adds two products in 16 bits, and cuts off what is
over 32,767. No two integers of one output and one sign sum to more than 128, so whichever it adds, 255 x 128
fits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ddcap.arrays import Array, array_namespace

SCALE = "#scale"
"""What the name of a quantised weight's scales ends in."""

LARGEST = 127
"""The largest integer of a weight."""

LARGEST_PAIR = LARGEST + 1  # two that are rounded up by a half each
"""The largest sum of two of them, of one output and one sign, where they are multiplied as integers."""

FACTOR, FACTOR_SCALE = "factor", "factor_scale"
"""What graphs call these integers and their scales."""

_SMALLEST = 65_536  # numbers of a matrix; smaller ones are not worth it


def is_quantised(value: np.ndarray) -> bool:
    """Return True for a weight to store in 8 bits: a large matrix, of a linear layer or an embedding."""
    return value.ndim == 2 and value.size >= _SMALLEST and np.issubdtype(value.dtype, np.floating)


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`weight` (outputs, inputs) as integers from -127 to 127, and float32 scales (outputs,)."""
    return _rounded(weight, np.abs(weight).max(axis=1) / LARGEST)


def quantise_factor(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of a weight that integers are multiplied with: no `largest_pair` is over `LARGEST_PAIR`."""
    return _rounded(weight, largest_pair(weight) / LARGEST)


def largest_pair(weight: np.ndarray) -> np.ndarray:
    """(outputs,) the largest sum of any two numbers of one sign in each row of (outputs, inputs >= 2)."""
    ordered = np.partition(weight, (1, weight.shape[1] - 2), axis=1).astype(np.float64)
    return np.maximum(-ordered[:, :2].clip(max=0).sum(axis=1), ordered[:, -2:].clip(min=0).sum(axis=1))


def _rounded(weight: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = scale.astype(np.float32)
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


def quantise_state(state: Mapping[str, np.ndarray], factors: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Weights by name, the large matrices in 8 bits with their scales beside them.

    Of the rest, what has more than one dimension is float16, and the few single rows stay float32.

    Args:
        state: the weights.
        factors: names of those that integers are multiplied with.
    """
    stored = {}
    for name, value in state.items():
        if is_quantised(value):
            how = quantise_factor if name in factors else quantise
            stored[name], stored[name + SCALE] = how(value)
        elif value.ndim > 1 and np.issubdtype(value.dtype, np.floating):
            stored[name] = value.astype(np.float16)
        else:
            stored[name] = value
    return stored
