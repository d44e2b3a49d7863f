"""Loading: a config or a folder becomes a model that runs, by ONNX Runtime or by PyTorch.

PyTorch is imported only where it is needed: ONNX graphs run without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DDCapError, MissingExtraError
from ddcap.model.config import GRAPHS_NAME, ModelConfig, read_config
from ddcap.model.onnx_model import OnnxModel
from ddcap.model.precision import Precision as Precision
from ddcap.model.precision import fastest_precision

if TYPE_CHECKING:
    from ddcap.model.autoregressive import AutoregressiveModel
    from ddcap.model.ddcap import DDCapModel
    from ddcap.model.encoders import ImageEncoder

TorchModel: TypeAlias = "DDCapModel | AutoregressiveModel"
Runtime = Literal["auto", "onnx", "torch"]


def load_runtime(
    folder: Path, name: str, device: Any, precision: Precision, runtime: Runtime, cuda_graphs: bool = False
) -> Any:
    """Load the model in `folder`, with its tokenizer.

    Args:
        folder: of the model.
        name: what the person called it.
        device: where to run.
        precision: see `Captioner.from_pretrained`.
        runtime: the same.
        cuda_graphs: the same.

    Raises:
        CheckpointError: if the model is damaged.
        DDCapError: if there is no such device, precision or runtime, or no CUDA graph for them.
        MissingExtraError: if PyTorch is wanted and not installed.
    """
    check_choice("precision", precision, Precision)
    check_choice("runtime", runtime, Runtime)
    if cuda_graphs and str(device).partition(":")[0] != "cuda":
        raise DDCapError(f"cuda_graphs: needs device cuda, not {device!s}; change it, or remove cuda_graphs")
    if runtime == "auto":
        light = (folder / GRAPHS_NAME).is_file() and str(device) == "cpu" and precision != "bfloat16"
        runtime = "onnx" if light else "torch"
    if runtime == "onnx":
        if str(device) != "cpu":
            raise DDCapError(f"device {str(device)!r}: ONNX graphs run on the CPU only; use runtime='torch'")
        if precision == "bfloat16":
            raise DDCapError("precision='bfloat16': needs PyTorch; use float32 or int8 with ONNX graphs")
        return OnnxModel(
            folder, fastest_precision("onnx", "cpu").precision if precision == "auto" else precision
        )
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"running {name!r} with PyTorch", "train") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by kind of device
        reason = str(error).splitlines()[0]
        raise DDCapError(f"device {str(device)!r}: not available here ({reason}); use cpu") from None
    model = load_model(folder)
    model.tokenizer = model.tokenizer or CaptionTokenizer.load(folder)
    model = model.to(device)
    if cuda_graphs:
        replay_cuda_graphs(model, name)
    return model


def replay_cuda_graphs(model: TorchModel, name: str) -> None:
    """Make a model decode by CUDA graphs, see `model.static_steps`; its weights must not change any more.

    Args:
        model: on its device.
        name: what the person called it.

    Raises:
        DDCapError: if it is autoregressive.
    """
    from ddcap.model.ddcap import DDCapModel
    from ddcap.model.static_steps import StaticDecoder

    if not isinstance(model, DDCapModel):
        raise DDCapError(
            f"cuda_graphs: {name!r} is autoregressive; use a diffusion model, or remove cuda_graphs"
        )
    model.static_decoder = StaticDecoder(model)


def build_model(config: ModelConfig, encoder: ImageEncoder | None = None) -> TorchModel:
    """Build a new model as `config` says, weights drawn from torch's global generator."""
    return _class_of(config)(config, encoder)


def load_model(folder: str | Path) -> TorchModel:
    """Read a model folder of either kind; evaluation mode, float32.

    Raises:
        CheckpointError: if a file is missing, damaged or does not fit.
    """
    return _class_of(read_config(folder)).from_pretrained(folder)


def _class_of(config: ModelConfig) -> type[DDCapModel] | type[AutoregressiveModel]:
    from ddcap.model.autoregressive import AutoregressiveModel
    from ddcap.model.ddcap import DDCapModel

    return AutoregressiveModel if config.model.kind == AutoregressiveModel.kind else DDCapModel


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise `DDCapError` if `value` is none of a Literal's."""
    if value not in get_args(choices):
        raise DDCapError(f"{name}={value!r}: use one of {', '.join(get_args(choices))}")
