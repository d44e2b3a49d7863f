"""The reference pages, made from the code: every setting, every command with its options."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from ddcap.commands import build_parser
from ddcap.presets import PRESETS
from ddcap.recipe import Recipe, ShardSource, TextSource

_MARKER = re.compile(r"<!-- generated: (\w+) -->")


def fill_reference(markdown: str, address: str) -> str:
    """Put what is generated in the place of its marker, `<!-- generated: settings -->`."""

    def generated(found: re.Match[str]) -> str:
        if found[1] not in _GENERATED:
            raise KeyError(f"{address}: nothing called {found[1]!r} is generated")
        return _GENERATED[found[1]]()

    return _MARKER.sub(generated, markdown)


# Settings.


def settings_page() -> str:
    """A table for every section of a recipe: setting, type, default, meaning."""
    hints = get_type_hints(Recipe)
    parts = [_section(field.name, hints[field.name]) for field in dataclasses.fields(Recipe)]
    parts.append("## Parts of `data`\n\nItems of the lists `data.shards` and `data.beside`.\n")
    parts += [
        _section(f"data.{name}", kind, level=3)
        for name, kind in (("shards", ShardSource), ("beside", TextSource))
    ]
    return "\n".join([*parts, _presets()])


def _section(name: str, section: type, level: int = 2) -> str:
    purpose = inspect.cleandoc(section.__doc__ or "").split("\n\n")[0]
    lines = [f"{'#' * level} `{name}`", "", " ".join(purpose.split()), ""]
    lines += ["| Setting | Type | Default | Meaning |", "|---|---|---|---|"]
    hints = get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        info: Any = field.default
        cells = (
            f"`{field.name}`",
            _type(hints[field.name], _bounds(info)),
            _default(field),
            _sentence(info.description),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _bounds(info: Any) -> str:
    """The limits of a number, as one reads them."""
    found = {type(limit).__name__: limit for limit in getattr(info, "metadata", [])}
    low, high = found.get("Ge") or found.get("Gt"), found.get("Le") or found.get("Lt")
    low_text = high_text = ""
    if low is not None:
        low_text = f"≥ {low.ge:g}" if hasattr(low, "ge") else f"> {low.gt:g}"
    if high is not None:
        high_text = f"≤ {high.le:g}" if hasattr(high, "le") else f"< {high.lt:g}"
    return ", ".join(text for text in (low_text, high_text) if text)


def _type(hint: Any, bounds: str = "") -> str:
    """A type in words: `integer ≥ 1`, `"squash" or "crop"`."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    if get_origin(hint) is Annotated:
        inner, *limits = get_args(hint)
        found = [limit for one in limits for limit in getattr(one, "metadata", [one])]
        return _type(inner, _bounds(types.SimpleNamespace(metadata=found)))
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type(part, bounds if part in (int, float) else "") for part in get_args(hint))
    if get_origin(hint) is tuple:
        inside = [part for part in get_args(hint) if part is not Ellipsis]
        count = "" if Ellipsis in get_args(hint) else f"{len(inside)} times "
        return f"list of {count}{_type(inside[0])}"
    if dataclasses.is_dataclass(hint):
        return "section"
    return f"{names[hint]} {bounds}".strip()


def _default(field: dataclasses.Field[Any]) -> str:
    info = field.default
    value = info.get_default(call_default_factory=True) if isinstance(info, FieldInfo) else info
    if value is dataclasses.MISSING or repr(value) == "PydanticUndefined":
        return "required"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _presets() -> str:
    lines = ["## Presets", "", "Several settings of `decoding` under one name.", ""]
    lines += ["| Kind of model | Preset | Settings |", "|---|---|---|"]
    for kind, presets in PRESETS.items():
        for name, values in presets.items():
            told = ", ".join(f"`{key}={str(value).lower()}`" for key, value in values.items())
            lines.append(f"| {kind} | `{name}` | {told} |")
    return "\n".join([*lines, ""])


# The command line.


def commands_page() -> str:
    """Every command with its arguments, options and their defaults."""
    return "\n".join(_command(parser, about) for parser, about in walk_commands(build_parser()))


def walk_commands(
    parser: argparse.ArgumentParser, about: str = ""
) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """A parser and those of its subcommands, each with what it is for."""
    yield parser, about or parser.description or ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, part in action.choices.items():
                yield from walk_commands(part, told.get(name, ""))


def _command(parser: argparse.ArgumentParser, about: str) -> str:
    parts = [f"## {parser.prog}", "", _sentence(about), ""]
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    parts += ["```text", *_wrapped(usage), "```", ""]
    if parser.description and parser.description != about:
        parts += [parser.description, ""]
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        if not actions:
            continue
        has_commands = any(isinstance(one, argparse._SubParsersAction) for one in actions)
        positional = "Commands" if has_commands else "Arguments"
        title = positional if group is parser._positionals else group.title or ""
        parts += [
            f"**{title[0].upper()}{title[1:]}**" + (f": {group.description}" if group.description else ""),
            "",
        ]
        parts += ["| Argument | Default | Meaning |", "|---|---|---|"]
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                for choice in action._choices_actions:
                    link = f"[`{parser.prog} {choice.dest}`](#{parser.prog.replace(' ', '-')}-{choice.dest})"
                    parts.append(f"| {link} | | {_sentence(choice.help or '')} |")
                continue
            parts.append(f"| {_named(action)} | {_usual(action)} | {_meaning(action)} |")
        parts.append("")
    return "\n".join(parts)


def _meaning(action: argparse.Action) -> str:
    """The option's help; its default has a column of its own."""
    if not action.help:
        return (
            ""
            if action.choices is None
            else "One of " + ", ".join(f"`{one}`" for one in action.choices) + "."
        )
    text = action.help % {**vars(action), "prog": "ddcap"}
    if _usual(action):
        text = re.sub(r" \(default: [^)]*\)", "", text)
    return _sentence(" ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")


def _named(action: argparse.Action) -> str:
    values = action.metavar or (None if action.nargs == 0 else action.dest)
    if isinstance(values, tuple):
        values = " ".join(values)
    if not action.option_strings:
        return f"`{values}`"
    if action.nargs == 0:
        return ", ".join(f"`{one}`" for one in action.option_strings)
    shown = values if action.metavar or values is None else values.upper()
    if action.choices is not None:
        shown = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs in ("?", "*"):
        shown = f"[{shown}]"
    return ", ".join(f"`{one} {shown}`" for one in action.option_strings)


def _usual(action: argparse.Action) -> str:
    if action.required and action.option_strings:
        return "required"
    if any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS)):
        return ""
    value = action.default
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def _wrapped(usage: str, width: int = 96) -> list[str]:
    """The usage in lines, an option on one of them."""
    lines, line = [], ""
    for piece in re.findall(r"\[[^\[\]]*(?:\[[^\]]*\])*[^\[\]]*\]|\S+", usage):
        if line and len(line) + len(piece) + 1 > width:
            lines.append(line)
            line = "   "
        line = f"{line} {piece}" if line else piece
    return [*lines, line]


_NAMES = {"onnx", "int8", "bf16", "compact", "s", "p", "squash"}  # not words: they keep their small letter


def _sentence(text: str) -> str:
    """With a capital first letter, unless it begins with a name, and a full stop."""
    if not text:
        return ""
    first = text.split()[0]
    is_name = "_" in first or first.endswith(":") or first[0] in "'`{[" or first in _NAMES
    text = text if is_name else text[0].upper() + text[1:]
    return text.replace("___", "`___`") + ("" if text[-1] in ".!?" else ".")


_GENERATED: dict[str, Callable[[], str]] = {"settings": settings_page, "commands": commands_page}
