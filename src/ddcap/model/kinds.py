"""The captioning models: which class a config means."""

from __future__ import annotations

from pathlib import Path

from ddcap.model.config import ModelConfig, read_config
from ddcap.model.ddcap import DDCapModel
from ddcap.model.encoders import ImageEncoder
from ddcap.model.twin import AutoregressiveModel

CaptioningModel = DDCapModel | AutoregressiveModel
_KINDS: dict[str, type[DDCapModel] | type[AutoregressiveModel]] = {
    kind.kind: kind for kind in (DDCapModel, AutoregressiveModel)
}


def build_model(config: ModelConfig, encoder: ImageEncoder | None = None) -> CaptioningModel:
    """A new model as `config` says, weights drawn from torch's global generator."""
    return _KINDS[config.model.kind](config, encoder)


def load_model(folder: str | Path) -> CaptioningModel:
    """Read a model folder of either kind; evaluation mode, float32.

    Raises:
        CheckpointError: if a file is missing, damaged or does not fit.
    """
    return _KINDS[read_config(folder).model.kind].from_pretrained(folder)
