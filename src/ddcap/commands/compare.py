"""`ddcap compare`: two evaluations of the same images."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    compare = commands.add_parser(
        "compare", help="say whether two evaluations of the same images differ by more than chance"
    )
    compare.add_argument("first", help="JSON file written by evaluate --output or score --output")
    compare.add_argument("second", help="another one")
    compare.add_argument("--json", action="store_true", help="print one JSON object")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from ddcap.evaluation.comparison import compare

    comparison = compare(options.first, options.second)
    print(json.dumps(comparison.to_dict(), ensure_ascii=False) if options.json else comparison.to_text())
    return 0
