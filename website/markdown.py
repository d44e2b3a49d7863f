"""Markdown as text: what stands outside its code."""

from __future__ import annotations

import re
from collections.abc import Callable

FENCE = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^\1\2 *$\n?", re.M | re.S)
_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """`markdown` with `change` applied to everything but fenced code and code spans."""
    return _around(FENCE, markdown, lambda prose: _around(_SPAN, prose, change))


def without_code(markdown: str) -> str:
    """`markdown` without fenced code and code spans."""
    return _SPAN.sub("", FENCE.sub("", markdown))


def _around(kept: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for found in kept.finditer(text):
        parts += [change(text[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*parts, change(text[end:])])
