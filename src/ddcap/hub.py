"""Names of models: of a folder on this disk, or of a repository on the Hub."""

from __future__ import annotations

import logging
from pathlib import Path, PureWindowsPath

logger = logging.getLogger("ddcap")

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


def is_folder_name(name: str | Path) -> bool:
    r"""Whether a name is of a folder, there or not, rather than a Hub id or "default".

    `C:\folder` and `C:/folder` are folders on every system: no Hub id has a colon or a backslash.
    """
    text = str(name)
    if isinstance(name, Path) or Path(name).exists():
        return True
    return text.startswith((".", "/", "~")) or "\\" in text or bool(PureWindowsPath(text).drive)


def announce_download(whose: str, what: str, name: str, revision: str | None) -> None:
    """Say that something is about to be downloaded from the Hub, unless it is a folder or here already.

    Args:
        whose: the model that asks for it.
        what: it is to it.
        name: folder or Hub id.
        revision: of the repository; None for its newest state.
    """
    if is_folder_name(name) or _is_cached(name, revision):
        return
    state = "in its newest state" if revision is None else f"at revision {revision}"
    logger.warning("%s: its %s is %s on the Hub, %s, and is downloaded now", whose, what, name, state)


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:
        return has("config.json") and any(map(has, _WEIGHTS))
    except HFValidationError:
        return False  # no name of a repository; the Hub's own refusal will follow
