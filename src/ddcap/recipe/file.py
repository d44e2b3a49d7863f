"""Recipes as YAML files, and the dotted overrides on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ddcap.errors import RecipeError
from ddcap.recipe import Recipe
from ddcap.settings import parse_settings


def load_recipe(
    path: str | Path, overrides: list[str] | None = None, *, base: str | Path | None = None
) -> Recipe:
    """Read a YAML recipe and apply dotted overrides.

    A recipe with `extends: other.yaml` (relative to itself) changes single settings of that one.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings; values are read as YAML.
        base: the recipe that it extends, in place of the one it names.

    Raises:
        RecipeError: if the file is missing or not YAML, or a setting is unknown or wrong.
    """
    values = _read_sections(Path(path), above=(), base=None if base is None else Path(base))
    for override in overrides or []:
        _apply_override(values, override)
    recipe: Recipe = parse_settings(Recipe, values, str(path))
    return recipe


def _read_sections(path: Path, above: tuple[Path, ...], base: Path | None = None) -> dict[str, Any]:
    """The sections of a recipe on top of those it extends; `above` are the recipes that extend this one."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _TextLoader) or {}
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; the shipped ones are in the folder recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give a YAML file") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{path}: not valid YAML ({detail}); mend the file") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: holds no sections; compare it with a file in recipes/")
    values = {section: {} if keys is None else keys for section, keys in values.items()}
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if not isinstance(extended, str):
        raise RecipeError(f"{path}: 'extends' is not the name of one recipe file")
    base = base or path.parent / extended
    if base.resolve() in {one.resolve() for one in (*above, path)}:
        raise RecipeError(f"{path}: extends {extended}, which extends it in turn; take one of them out")
    merged = _read_sections(base, (*above, path))
    for section, keys in values.items():
        both = isinstance(keys, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **keys} if both else keys
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
    *sections, key = dotted.split(".")
    try:
        value = yaml.load(text, _TextLoader)
    except yaml.YAMLError:
        raise RecipeError(f"override {override!r}: the value is not valid YAML; quote it") from None
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"override {override!r}: {section!r} is a single value, not a section")
    values[key] = value


class _TextLoader(yaml.SafeLoader):
    """Every scalar but null stays text for the settings to read by type: `no` is a word, `2e-4` a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
