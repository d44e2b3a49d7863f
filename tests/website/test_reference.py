"""The reference pages name every setting and every option."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from ddcap.commands import build_parser
from ddcap.recipe import Recipe, ShardSource, TextSource
from website.reference import commands_page, fill_reference, settings_page, walk_commands

DOCS = Path(__file__).parents[2] / "docs"


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def sections(page):
    """Heading to the rows of the tables below it."""
    found = {}
    for part in re.split(r"^#{2,3} ", page, flags=re.M)[1:]:
        title, _, text = part.partition("\n")
        found[title.strip("`")] = [cells(line) for line in text.splitlines() if line.startswith("| ")]
    return found


def test_every_setting_has_a_type_a_default_and_a_meaning():
    tables = sections(settings_page())
    kinds = {**get_type_hints(Recipe), "data.shards": ShardSource, "data.beside": TextSource}
    for name, kind in kinds.items():
        rows = {row[0]: row[1:] for row in tables[name]}
        for field in dataclasses.fields(kind):
            of_type, default, meaning = rows[f"`{field.name}`"]
            assert of_type and default and len(meaning) > 5, f"{name}.{field.name}"


def test_types_and_limits_are_in_words():
    rows = {row[0]: row[1:] for row in sections(settings_page())["training"]}
    assert rows["`epochs`"][:2] == ["number > 0", "`30`"]
    assert rows["`batch_size`"][:2] == ["integer ≥ 1", "`512`"]
    assert rows["`betas`"][:2] == ["list of 2 times number ≥ 0, < 1", "`[0.9, 0.999]`"]
    assert rows["`schedule`"][0] == "`cosine` or `constant`"


def options():
    for parser, _ in walk_commands(build_parser()):
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction) and action.help != argparse.SUPPRESS:
                yield parser.prog, action


def test_every_option_of_every_command_is_there_with_its_default():
    tables = sections(commands_page())
    counted = 0
    for command, action in options():
        names = action.option_strings or [action.metavar or action.dest]
        row = next(row for row in tables[command] if re.search(rf"`{re.escape(names[-1])}[ `\]]", row[0]))
        assert row[2], f"{command} {names[-1]}: no meaning"
        if action.default not in (None, False, argparse.SUPPRESS, []) and action.default is not True:
            assert str(action.default) in row[1] or isinstance(action.default, list), f"{command} {names}"
        counted += 1
    assert counted > 100


def test_an_unknown_marker_is_an_error():
    with pytest.raises(KeyError, match="nothing called 'options' is generated"):
        fill_reference("<!-- generated: options -->", "page.md")


def test_the_pages_have_their_markers():
    for name in ("settings", "command_line"):
        page = (DOCS / "reference" / f"{name}.md").read_text()
        assert len(fill_reference(page, name)) > 5 * len(page)
