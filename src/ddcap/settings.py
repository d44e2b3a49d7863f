"""Plain values to typed settings and back; what is wrong with them is said in one line."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ddcap.errors import RecipeError

RETIRED: dict[str, dict[str, Any]] = {
    "training": {"objective": "likelihood"},
    "data": {"consensus": 0},
    "encoder": {"trainable_from": 0, "init": None},
}
"""Settings of experiments that did not help, with what they were at: docs/experiments.md tells of them."""


def forget_retired(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """A section as an earlier version wrote it, without the settings that are no more."""
    return {name: value for name, value in values.items() if name not in RETIRED.get(section, {})}


def parse_settings(section_type: type, values: dict[str, Any], source: str) -> Any:
    """Validate `values` as `section_type`.

    Args:
        section_type: `Recipe` or one of its sections.
        values: nested plain values.
        source: what the values came from, for the message.

    Raises:
        RecipeError: with one line for every setting that is unknown or wrong.
    """
    try:
        return TypeAdapter(section_type).validate_python(values)
    except ValidationError as error:
        lines = [_explain(section_type, problem) for problem in error.errors()]
        raise RecipeError(f"{source}: " + "; ".join(lines)) from None


def dump_settings(section: Any) -> dict[str, Any]:
    """Plain nested values of `section`, ready for YAML or JSON."""
    values: dict[str, Any] = TypeAdapter(type(section)).dump_python(section, mode="json")
    return values


def _explain(section_type: type, problem: Any) -> str:
    """One readable clause for one pydantic problem."""
    where = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "unexpected_keyword_argument":
        if any(where in (f"{section}.{name}", name) for section, names in RETIRED.items() for name in names):
            return f"{where!r} is no more: it did not help, docs/experiments.md says what it gave"
        fields = _fields_at(section_type, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), fields, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(fields)}"
        return f"unknown setting {where!r}; {remedy}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    return f"{where}={problem['input']}: {message[0].lower()}{message[1:]}"


def _fields_at(section_type: type, location: tuple[Any, ...]) -> list[str]:
    for part in location:
        section_type = get_type_hints(section_type)[str(part)]
    return [field.name for field in dataclasses.fields(section_type)]
