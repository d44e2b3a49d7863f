"""A model's own decoding settings, with what a caller changes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddcap.errors import RecipeError
from ddcap.model.config import ModelConfig
from ddcap.model.generation_config import own_names
from ddcap.presets import preset_settings
from ddcap.settings import DecodingSettings, dump_settings, parse_settings
from ddcap.values import as_text


def overridden(model: ModelConfig, changes: Mapping[str, Any]) -> DecodingSettings:
    """The decoding settings of a model with `changes`. A change that is None has no effect.

    A given `length` is exact, even if the model's own settings choose among candidates of several lengths.
    With `candidates`, it is the middle of their lengths. `preset` names settings that other changes override.
    A setting that nobody gave gives way to one that was given and excludes it.

    Args:
        model: the model's configuration.
        changes: settings by name (ours, or that of `model.generation_config.ALIASES`), and `preset`.

    Raises:
        RecipeError: if a setting is unknown or wrong.
    """
    given = {name: value for name, value in own_names(changes).items() if value is not None}
    own = dump_settings(model.decoding)
    if "preset" in given:
        own.update(preset_settings(as_text("preset", given.pop("preset")), model.model.kind))
    if given.get("length", "predicted") != "predicted" and given.get("candidates", 1) == 1:
        own.update(exact_length=True, candidates=1)
    elif "length" in given or given.get("candidates", 1) != 1:
        own.update(exact_length=False)
    own.update(_given_up(given))
    merged: DecodingSettings = parse_settings(DecodingSettings, {**own, **given}, "decoding settings")
    try:
        merged.check_model(model.model, sees_concepts=model.concepts > 0, sees_persons=model.persons)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return merged


def _given_up(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that exclude given ones, at values that do not; a model or preset that has others yields."""
    plain: dict[str, Any] = {}
    if given.get("method", "best_first") != "best_first":
        plain.update(distinct=False, order="probability", focus=0, prune=())
    if given.get("schedule") == "released":
        plain.update(distinct=False, focus=0, prune=())
    if given.get("block") is not None:
        plain.update(prune=())
    if given.get("temperature") or given.get("method", "left_to_right") != "left_to_right":
        plain.update(beams=1)
    return plain
