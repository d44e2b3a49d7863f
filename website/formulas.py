"""Formulas between dollar signs, as GitHub reads them, to MathML, which browsers draw without a script."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

from website.markdown import outside_code

_FORMULA = re.compile(
    r"\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$(?!\w)", re.S
)


def formulas_to_mathml(markdown: str) -> str:
    """Replace `$...$` and `$$...$$` outside code."""
    return outside_code(markdown, lambda prose: _FORMULA.sub(_mathml, prose))


def _mathml(found: re.Match[str]) -> str:
    if found["inline"] is not None:
        return convert(found["inline"], display="inline")
    block = re.sub(r"\\tag\{(\w+)\}", r"\\qquad (\1)", found["block"].strip())
    return f'<div class="formula">{convert(block, display="block")}</div>'
