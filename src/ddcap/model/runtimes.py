"""A model's folder to a model that runs, by ONNX Runtime or by PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DDCapError, MissingExtraError
from ddcap.model.config import GRAPHS_NAME
from ddcap.model.onnx_model import OnnxModel

Precision = Literal["auto", "float32", "bfloat16", "int8"]
Runtime = Literal["auto", "onnx", "torch"]


def load_runtime(folder: Path, name: str, device: Any, precision: Precision, runtime: Runtime) -> Any:
    """The model in `folder`, with its tokenizer.

    Args:
        folder: of the model.
        name: what the person called it.
        device: where to run.
        precision: see `Captioner.from_pretrained`.
        runtime: the same.

    Raises:
        CheckpointError: if the model is damaged.
        DDCapError: if there is no such device, precision or runtime.
        MissingExtraError: if PyTorch is wanted and not installed.
    """
    check_choice("precision", precision, Precision)
    check_choice("runtime", runtime, Runtime)
    if runtime == "auto":
        light = (folder / GRAPHS_NAME).is_file() and str(device) == "cpu" and precision != "bfloat16"
        runtime = "onnx" if light else "torch"
    if runtime == "onnx":
        if str(device) != "cpu":
            raise DDCapError(f"device {str(device)!r}: ONNX graphs run on the CPU only; use runtime='torch'")
        if precision == "bfloat16":
            raise DDCapError("precision='bfloat16': needs PyTorch; use float32 or int8 with ONNX graphs")
        return OnnxModel(folder, "int8" if precision == "auto" else precision)
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"running {name!r} with PyTorch", "train") from None
    from ddcap.model.kinds import load_model

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by kind of device
        reason = str(error).splitlines()[0]
        raise DDCapError(f"device {str(device)!r}: not available here ({reason}); use cpu") from None
    model = load_model(folder)
    model.tokenizer = model.tokenizer or CaptionTokenizer.load(folder)
    return model.to(device)


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise `DDCapError` if `value` is none of a Literal's."""
    if value not in get_args(choices):
        raise DDCapError(f"{name}={value!r}: use one of {', '.join(get_args(choices))}")
