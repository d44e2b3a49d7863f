"""Weights as 8-bit integers with a scale for each output: a quarter of the bytes, the same file for all.

Both runtimes read the same integers, so they compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

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


def dequantise(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The float32 weight (outputs, inputs) that integers and scales stand for."""
    return weight.astype(np.float32) * scale[:, None]


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


def dequantise_state(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `quantise_state`: all floating numbers in float32."""
    state = {}
    for name, value in stored.items():
        if name + SCALE in stored:
            state[name] = dequantise(value, stored[name + SCALE])
        elif not name.endswith(SCALE):
            state[name] = value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value
    return state
