"""Presets: several settings of decoding under one name, by kind of model."""

from __future__ import annotations

from typing import Any

from ddcap.errors import RecipeError

_PARALLEL: dict[str, Any] = {"method": "best_first", "schedule": "per_caption", "distinct": True}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "diffusion": {
        "fast": {**_PARALLEL, "steps": 4, "guidance": 1.0, "prune": [3, 2], "focus": 0},
        "best": {**_PARALLEL, "steps": 10, "prune": [], "focus": 0},
    },
    "autoregressive": {"fast": {"beams": 1}, "best": {"beams": 5}},
}
"""Decoding settings by kind of model and preset; for their speed and scores see docs/performance.md."""


def preset_settings(name: str, kind: str) -> dict[str, Any]:
    """The settings of a preset for a kind of model.

    Raises:
        RecipeError: if there is no preset of that name.
    """
    presets = PRESETS[kind]
    if name not in presets:
        raise RecipeError(f"preset={name!r}: use one of {', '.join(presets)}")
    return presets[name]
