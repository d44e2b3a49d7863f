"""Where a model lies: the embedded default, a folder, or the Hub."""

from __future__ import annotations

from pathlib import Path

from ddcap.data.concepts import FILE_NAME as CONCEPTS_NAME
from ddcap.errors import CheckpointError
from ddcap.hub import is_folder_name
from ddcap.model.stored_model import CONFIG_NAME, ENCODER_NAME, WEIGHTS_NAME

DEFAULT_MODEL = "default"
MODEL_FILES = (CONFIG_NAME, WEIGHTS_NAME, ENCODER_NAME, CONCEPTS_NAME, "tokenizer.json")
"""All files that a model may consist of; nothing else is downloaded."""

_EMBEDDED = Path(__file__).parent / "pretrained" / "default"


def find_model(model: str | Path) -> Path:
    """The folder of a model: the embedded one, a given folder, or a download from the Hub.

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
        return Path(snapshot_download(str(model), allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{model}: no such folder, and not to be had from the Hub ({reason})") from None
