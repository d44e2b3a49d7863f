"""`generation_config.json`, and the names that transformers and diffusers have for decoding settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddcap.errors import CheckpointError, RecipeError
from ddcap.files import write_text
from ddcap.settings import DecodingSettings, dump_settings

GENERATION_CONFIG_NAME = "generation_config.json"
ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_beams": "beams",
    "num_return_sequences": "num",
}
"""Names of diffusers and transformers, and ours; `num` is the number of captions per image."""


def own_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the names of `ALIASES` by ours.

    Raises:
        RecipeError: if a setting is given by both names.
    """
    both = [name for name, own in ALIASES.items() if name in settings and own in settings]
    if both:
        raise RecipeError(f"{both[0]} and {ALIASES[both[0]]} are the same setting; give one of them")
    return {ALIASES.get(name, name): value for name, value in settings.items()}


def write_generation_config(folder: str | Path, decoding: DecodingSettings) -> None:
    """Write the decoding settings under the names of other libraries where they have one."""
    theirs = {own: name for name, own in ALIASES.items()}
    values = {theirs.get(name, name): value for name, value in dump_settings(decoding).items()}
    write_text(Path(folder) / GENERATION_CONFIG_NAME, json.dumps(values, indent=2) + "\n")


def read_generation_config(folder: str | Path) -> dict[str, Any]:
    """Read decoding settings by our names; empty where the folder has no such file.

    What transformers notes about itself (`transformers_version`, names that begin with "_") is left out.

    Raises:
        CheckpointError: if the file is not a JSON object of settings.
    """
    path = Path(folder) / GENERATION_CONFIG_NAME
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path}: not a JSON object; repair it, or delete it to decode as config.json says"
        )
    try:
        settings = own_names(
            {k: v for k, v in values.items() if k[:1] != "_" and k != "transformers_version"}
        )
    except RecipeError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if "num" in settings:
        raise CheckpointError(
            f"{path}: num_return_sequences is given in a call, not stored; remove it from the file"
        )
    return settings
