"""Files of weights, which may be from strangers: looked at before anything is allocated, and never run."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ddcap.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file by name, from its header, which was compared with the file's length.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error}); copy the model again") from None


def check_shapes(expected: Shapes, found: Shapes) -> None:
    """Compare a model's weights with a file's.

    Raises:
        RuntimeError: if names or shapes do not fit.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} {found[name]} for {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if missing or unexpected or misshapen:
        raise RuntimeError(f"missing {missing[:3]}, unexpected {unexpected[:3]}, misshapen {misshapen[:3]}")


def load_pickle(path: Path, remedy: str) -> Any:
    """What `torch.save` wrote, tensors and plain values only, onto the CPU.

    Args:
        path: of the file.
        remedy: for the message.

    Raises:
        CheckpointError: if it holds anything else, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickles that torch has not written; they are refused anyhow
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises to load it all the same
        reason = "it holds more than weights, which could run code here, or none at all"
    except Exception as error:  # torch raises many kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise CheckpointError(f"{path}: damaged or cut short ({reason}); {remedy}")
