"""Find a model (the default, a folder, the Hub), and publish one with a model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddcap.data.concepts import FILE_NAME as CONCEPTS_NAME
from ddcap.data.images import Preprocessing
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.confidence import Confidence
from ddcap.errors import CheckpointError, DataError, DDCapError
from ddcap.files import is_folder_name, write_text
from ddcap.model.config import (
    CONFIDENCE_NAME,
    CONFIG_NAME,
    DETECTOR_LICENCE_NAME,
    DETECTOR_NAME,
    ENCODER_NAME,
    GRAPHS,
    GRAPHS_NAME,
    OLD_DETECTOR_NAME,
    WEIGHTS_NAME,
    ModelConfig,
)
from ddcap.model.detector import Detector
from ddcap.model.generation_config import GENERATION_CONFIG_NAME, write_generation_config
from ddcap.model.protocol import CaptioningModel

# Find a model: the default, a folder, or the Hub.

DEFAULT_MODEL = "default"
MODEL_FILES = (
    CONFIG_NAME,
    WEIGHTS_NAME,
    ENCODER_NAME,
    CONCEPTS_NAME,
    CONFIDENCE_NAME,
    DETECTOR_NAME,
    DETECTOR_LICENCE_NAME,
    OLD_DETECTOR_NAME,
    "tokenizer.json",
    GENERATION_CONFIG_NAME,
    GRAPHS_NAME,
    *(f"{graph}.onnx" for graph in GRAPHS),
)
"""All files that a model may consist of; nothing else is downloaded."""

_EMBEDDED = Path(__file__).parent / "pretrained" / "default"


def find_model(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find the folder of a model: the embedded one, a given folder, or a download from the Hub.

    Args:
        model: "default", a folder, or a Hub id.
        revision: branch, tag or commit on the Hub; None means its main branch.
        token: for a private model; None takes the one that was logged in with.
        cache_dir: where downloads lie; None means the Hub's cache of this user.
        local_files_only: whether to use what was downloaded before, without asking the Hub.

    Raises:
        CheckpointError: if it is none of them.
    """
    if model == DEFAULT_MODEL:
        return _EMBEDDED
    folder = Path(model)
    if folder.exists():
        return folder
    if str(model).count("/") != 1 or is_folder_name(model):
        raise CheckpointError(
            f"{model}: no such model; give 'default', a folder, or a Hub id like owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        downloaded = snapshot_download(
            str(model),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(MODEL_FILES),
        )
        return Path(downloaded)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{model}: no such folder, and not available from the Hub ({reason}); check the name"
        ) from None


def copy_model(source: Path, folder: Path, config: ModelConfig) -> None:
    """Copy all files of a model, and store other decoding settings in the copy.

    Args:
        source: the model's folder.
        folder: is made if missing.
        config: of the model, with the settings.

    Raises:
        CheckpointError: if both folders are the same.
    """
    if folder.exists() and folder.samefile(source):
        raise CheckpointError(f"{folder}: is the model's own folder; choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # of another model
    write_text(folder / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")


def save_model(
    model: CaptioningModel,
    tokenizer: CaptionTokenizer,
    confidence: Confidence | None,
    folder: Path,
    config: ModelConfig,
    dtype: Any = None,
) -> None:
    """Write a model with everything that belongs to it, and what transformers reads beside it.

    Args:
        model: a PyTorch model; ONNX graphs are copied from their folder.
        tokenizer: of the model.
        confidence: its calibration, if it has one.
        folder: is made if missing.
        config: of the model, with the decoding settings to store.
        dtype: torch dtype of the weights; None means float32.

    Raises:
        CheckpointError: if graphs would be copied onto themselves.
        DDCapError: if a `dtype` is asked of graphs.
    """
    given: Any = model  # of either runtime
    if getattr(model, "runtime", "torch") == "onnx":
        if dtype is not None:
            raise DDCapError("dtype: ONNX graphs keep theirs; load the model with runtime='torch'")
        copy_model(given.folder, folder, config)
    else:
        import torch

        given.save_pretrained(folder, torch.float32 if dtype is None else dtype, config)
        tokenizer.save(folder)
        if confidence is not None:
            confidence.save(folder)
    write_transformers_files(folder, config, given.preprocessing)


def push(
    model: CaptioningModel,
    tokenizer: CaptionTokenizer,
    confidence: Confidence | None,
    target: str | Path,
    card: Mapping[str, Any],
    *,
    private: bool | None = None,
) -> str:
    """Save a PyTorch model in float16 with its card, in a folder or on the Hub. Returns the path or URL.

    Args:
        model: see `save_model`, as for the next two.
        tokenizer: of the model.
        confidence: its calibration, if it has one.
        target: see `Captioner.push_to_hub`.
        card: see `write_card`.
        private: whether a new Hub repository is private.

    Raises:
        CheckpointError: if the upload fails.
        DDCapError: if the model runs as ONNX graphs.
    """
    if getattr(model, "runtime", "torch") == "onnx":
        raise DDCapError("ONNX graphs cannot be pushed; load the model with runtime='torch'")
    import torch

    given: Any = model

    def save(folder: Path, name: str | None) -> Path:
        save_model(model, tokenizer, confidence, folder, given.config, torch.float16)
        parameters = sum(value.numel() for value in given.stored_state().values())
        write_card(folder, given.config, parameters=parameters, name=name, **card)
        return folder

    if is_folder_name(target):
        return str(save(Path(target).expanduser(), None))
    with tempfile.TemporaryDirectory() as temporary:
        return upload(save(Path(temporary), str(target)), str(target), private=private)


# What transformers reads beside a model.

SHIM_NAME = "modeling_ddcap.py"
_SHIM = '''"""For transformers: AutoModel loads this folder with trust_remote_code=True. Needs ddcap."""

from ddcap.transformers_model import DDCapConfig, DDCapForImageCaptioning, DDCapProcessor

__all__ = ["DDCapConfig", "DDCapForImageCaptioning", "DDCapProcessor"]
'''
_CLASSES = {
    "AutoConfig": "DDCapConfig",
    "AutoModel": "DDCapForImageCaptioning",
    "AutoModelForImageTextToText": "DDCapForImageCaptioning",
}
_PROCESSORS = {"AutoProcessor": "DDCapProcessor", "AutoImageProcessor": "DDCapProcessor"}


def write_transformers_files(folder: str | Path, config: ModelConfig, preprocessing: Preprocessing) -> None:
    """Write what lets transformers load a model's folder with `trust_remote_code=True`.

    These are `modeling_ddcap.py`, `preprocessor_config.json`, `generation_config.json`, and the names of the
    classes in `config.json`.

    Args:
        folder: of the saved model.
        config: of the model.
        preprocessing: of its encoder.
    """
    module = SHIM_NAME.removesuffix(".py")

    def classes(kinds: Mapping[str, str]) -> dict[str, str]:
        return {auto: f"{module}.{name}" for auto, name in kinds.items()}

    folder, size = Path(folder), preprocessing.size
    path = folder / CONFIG_NAME
    known = json.loads(path.read_text(encoding="utf-8"))
    head = {"model_type": "ddcap", "architectures": [_CLASSES["AutoModel"]], "auto_map": classes(_CLASSES)}
    write_text(path, json.dumps({**known, **head}, indent=2) + "\n")
    processor = {
        "processor_class": _PROCESSORS["AutoProcessor"],
        "auto_map": classes(_PROCESSORS),
        "size": {"height": size, "width": size},
        "fit": preprocessing.fit,
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    write_text(folder / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n")
    write_generation_config(folder, config.decoding)
    write_text(folder / SHIM_NAME, _SHIM)


# A model with a card that says what it is, put into a folder or onto the Hub.

CARD_NAME = "README.md"
_TAGS = ["image-captioning", "image-to-text", "ddcap"]


def write_card(
    folder: str | Path,
    config: ModelConfig,
    *,
    parameters: int,
    name: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
    licence: str | None = None,
    data: str | None = None,
) -> Path:
    """Write the model card, `README.md`. An existing card is kept.

    Args:
        folder: folder of the model, with the licence of its detector of persons, if it has one.
        config: config of the model.
        parameters: number of parameters in the model's file.
        name: name of the model, also used to load it; None means "MODEL".
        evaluation: output of `ddcap evaluate --json`.
        licence: licence of the model, for example "mit".
        data: the training data, in one line.

    Raises:
        DataError: if `evaluation` is not such an output.
    """
    from huggingface_hub import EvalResult, ModelCardData

    path = Path(folder) / CARD_NAME
    if path.exists():
        return path
    is_diffusion = config.model.kind == "diffusion"
    tags = [*_TAGS, "discrete-diffusion"] if is_diffusion else _TAGS
    results, figures = None, "Not evaluated yet. Run `ddcap evaluate`.\n"
    if evaluation is not None:
        try:
            split, images = evaluation["split"], int(evaluation["images"])
            metrics, intervals = dict(evaluation["metrics"]), dict(evaluation.get("intervals_95", {}))
        except (KeyError, TypeError, ValueError):
            raise DataError("evaluation: not the output of 'ddcap evaluate --json'; run it again") from None
        results = [
            EvalResult("image-to-text", "captions", f"{split}, {images} images", metric, value)
            for metric, value in metrics.items()
        ]
        figures = _figures(metrics, intervals, split, images, evaluation)
    model_name = name or "MODEL"
    head = ModelCardData(
        license=licence,
        library_name="ddcap",
        pipeline_tag="image-to-text",
        language="en",
        tags=tags,
        model_name=model_name if results else None,
        eval_results=results,
    )
    detector = None
    if config.persons:  # its origin is the licence's first line, which is read faster than the graph
        licence_path = path.parent / DETECTOR_LICENCE_NAME
        if licence_path.exists():
            detector = licence_path.read_text(encoding="utf-8").partition("\n")[0]
        else:  # a model of before
            detector = Detector.load(path.parent).origin
    body = _body(model_name, config, parameters, figures, data, detector)
    write_text(path, f"---\n{head.to_yaml()}\n---\n\n{body}")
    return path


def upload(folder: str | Path, repo_id: str, *, private: bool | None = None) -> str:
    """Put a folder onto the Hub; its address.

    Args:
        folder: of a model with its card.
        repo_id: "owner/name"; made if there is none.
        private: of a new one; None follows the owner's setting.

    Raises:
        CheckpointError: if the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="A model of ddcap")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{repo_id}: upload to the Hub failed ({reason}); check the name and 'hf auth whoami', or give "
            "a folder"
        ) from None
    return str(address)


def _body(
    name: str, config: ModelConfig, parameters: int, figures: str, data: str | None, detector: str | None
) -> str:
    model, encoder = config.model, config.encoder
    kind = "Discrete diffusion (DDCap)" if model.kind == "diffusion" else "Autoregressive (DDCap's blocks)"
    trained = "trained, in this file" if encoder.travels else "frozen, loaded from its own source"
    designs = {
        "length prediction": model.length_prediction,
        "concentrated attention mask": model.concentrated_attention,
    }
    on = ", ".join(design for design, is_on in designs.items() if is_on) or "none"
    persons = f"\n| detector | {detector}; licence: {DETECTOR_LICENCE_NAME} |" if detector else ""
    return f"""# {name}

An image captioner. {kind}, {model.layers} layers, width {model.width}.
Captions have at most {model.max_length} tokens.

## Use

In a clone of ddcap's repository:

    pip install -c constraints.txt ".[train]"
    ddcap caption --model {name} photo.jpg

    from ddcap import Captioner
    captioner = Captioner.from_pretrained("{name}")
    print(captioner("photo.jpg")[0].text)

## Model

| | |
|---|---|
| parameters in this file | {parameters:,} |
| vocabulary | {config.vocabulary_size:,} entries |
| image encoder | {encoder.kind} {encoder.name}, {encoder.image_size} pixels, {trained} |{persons}
| designs | {on} |
| decoding by default | `{json.dumps(config.to_dict()["decoding"])}` |
| trained on | {data or "not given"} |

## Figures

{figures}
## Limits

The model knows what its training images show. It repeats the biases and errors of their annotators. It
is not reliable about people, numbers or text.
"""


def _figures(
    metrics: Mapping[str, float],
    intervals: Mapping[str, Any],
    split: str,
    images: int,
    evaluation: Mapping[str, Any],
) -> str:
    rows = []
    for metric, value in metrics.items():
        low_high = intervals.get(metric)
        shown = f"[{low_high[0]:.1f}, {low_high[1]:.1f}]" if low_high else ""
        rows.append(f"| {metric} | {value:.1f} | {shown} |")
    tokenization = evaluation.get("tokenization", "unknown")
    return (
        f"On {split}, {images} images, scores times 100, 95 % bootstrap interval over images; words split by "
        f"`{tokenization}`:\n\n| metric | value | interval |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )
