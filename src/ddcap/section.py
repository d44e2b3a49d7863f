"""The base of all sections of settings: checked strictly, and aware of the settings that were given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, GetCoreSchemaHandler
from pydantic_core import ArgsKwargs, CoreSchema, core_schema

# How all sections are checked: an unknown key fails, and so do infinite numbers.

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Section:
    """Base of the sections. Knows which settings were given; after `dataclasses.replace`, all were."""

    __slots__ = ("_given",)  # beside the settings: `vars(section)` is those alone
    _given: frozenset[str]

    @property
    def given(self) -> frozenset[str]:
        """Names of the given settings, including those given their default."""
        return self._given

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Called for every new section, from the constructor or from plain values of a file."""
        return core_schema.no_info_wrap_validator_function(cls._remember_given, handler(source))

    @classmethod
    def _remember_given(cls, values: Any, validate: Callable[[Any], Any]) -> Any:
        section = validate(values)
        if section is values:
            return section  # it was made before
        if isinstance(values, ArgsKwargs):
            names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
            given = {*names[: len(values.args)], *(values.kwargs or {})}
        else:
            given = set(values)
        object.__setattr__(section, "_given", frozenset(given))
        return section

    def __getstate__(self) -> Any:
        return vars(self), self.given

    def __setstate__(self, state: Any) -> None:
        values, given = state
        vars(self).update(values)
        object.__setattr__(self, "_given", given)
