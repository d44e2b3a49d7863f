"""A stored model's config, and the names of the files in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddcap.errors import CheckpointError, RecipeError
from ddcap.model.generation_config import read_generation_config
from ddcap.settings import (
    DecodingSettings,
    DiffusionSettings,
    EncoderSettings,
    ModelSettings,
    dump_settings,
    forget_retired,
    parse_settings,
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
GRAPHS_NAME = "graphs.json"  # which weight each constant of the ONNX graphs is
CONFIDENCE_NAME = "confidence.safetensors"
DETECTOR_NAME, DETECTOR_LICENCE_NAME = "detector.onnx", "detector.LICENSE"  # see `model/detector.py`
OLD_DETECTOR_NAME = "persons.onnx"
INT8 = "_int8"  # ends the names of graphs that multiply integers
_BOTH = ("memory", "step", "judge")
GRAPHS = ("encoder", "length", *_BOTH, *(name + INT8 for name in _BOTH), "choose", "guided_choose")
"""The light runtime's, each NAME.onnx; see `model/onnx_export.py`."""
ENCODER_NAME = "encoder.json"  # the architecture of a trained encoder that would else be asked of the Hub


@dataclass(frozen=True)
class ModelConfig:
    """Everything a stored model must know about itself.

    `decoding` are its default decoding settings, `concepts` is how many its tagger knows; 0 without one.
    `persons` is whether a detector, of persons at least, lies beside the weights.
    """

    vocabulary_size: int
    encoder: EncoderSettings
    model: ModelSettings
    diffusion: DiffusionSettings
    decoding: DecodingSettings
    concepts: int = 0
    persons: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`."""
        sections = {name: dump_settings(getattr(self, name)) for name in _SECTIONS}
        sizes: dict[str, int] = {"vocabulary_size": self.vocabulary_size}
        if self.concepts:
            sizes["concepts"] = self.concepts
        if self.persons:
            sizes["persons"] = True
        return {"format": "ddcap-1", **sizes, **sections}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> ModelConfig:
        """Inverse of `to_dict`.

        Raises:
            CheckpointError: if `values` are of another format, or a setting is missing, unknown or wrong.
        """
        if not isinstance(values, dict) or values.get("format") != "ddcap-1":
            raise CheckpointError(
                f"{source}: not the config of a ddcap model (its 'format' is not 'ddcap-1'); check the path"
            )
        size = values.get("vocabulary_size")
        if not isinstance(size, int) or size < 1:
            raise CheckpointError(
                f"{source}: vocabulary_size={size!r} is not a number of words; copy the model again"
            )
        concepts = values.get("concepts", 0)
        if not isinstance(concepts, int) or concepts < 0:
            raise CheckpointError(f"{source}: concepts={concepts!r} is not a number; copy the model again")
        persons = values.get("persons", False)
        if not isinstance(persons, bool):
            raise CheckpointError(f"{source}: persons={persons!r} is neither true nor false; copy it again")
        missing = _SECTIONS.keys() - values.keys()
        if missing:
            raise CheckpointError(f"{source}: has no section {min(missing)!r}; copy the model again")
        try:
            sections = {
                name: parse_settings(kind, forget_retired(name, values[name]), f"{source}, {name}")
                for name, kind in _SECTIONS.items()
            }
        except RecipeError as error:
            raise CheckpointError(str(error)) from None
        if sections["encoder"].concepts and not concepts:
            raise CheckpointError(
                f"{source}: encoder.concepts={sections['encoder'].concepts}, but the number of "
                "concepts is missing; copy the model again"
            )
        return cls(vocabulary_size=size, concepts=concepts, persons=persons, **sections)


_SECTIONS: dict[str, type] = {
    "encoder": EncoderSettings,
    "model": ModelSettings,
    "diffusion": DiffusionSettings,
    "decoding": DecodingSettings,
}


def read_config(folder: str | Path) -> ModelConfig:
    """The config of a model folder; settings in `generation_config.json` go before those in `config.json`.

    Raises:
        CheckpointError: if config or weights are missing, or the config is damaged.
    """
    config_path, weights_path = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
    for path in (config_path, weights_path):
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; give the folder of a ddcap model")
    try:
        values = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{config_path}: not valid JSON; copy the model again") from None
    generation = read_generation_config(folder)
    if generation and isinstance(values, dict) and isinstance(values.get("decoding"), dict):
        values["decoding"] = {**values["decoding"], **generation}
    return ModelConfig.from_dict(values, str(config_path))
