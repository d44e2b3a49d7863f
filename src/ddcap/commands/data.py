"""`ddcap data`: look a data set over before training on it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from ddcap.commands.progress import progress_bar


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    data = commands.add_parser("data", help="check a data set before training on it")
    actions = data.add_subparsers(required=True, metavar="action")
    check = actions.add_parser(
        "check", help="list missing and unreadable pictures and entries without captions"
    )
    check.add_argument(
        "captions", help="Karpathy JSON, CSV (image, caption), or a folder with a .txt beside each picture"
    )
    check.add_argument("--images", default=".", help="folder that picture names start from")
    check.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="pictures decoded side by side"
    )
    check.add_argument(
        "--format", choices=["text", "jsonl"], default="text", help="for people or for programs"
    )
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from ddcap.data.check import check_data

    report = check_data(options.captions, options.images, processes=options.workers, progress=progress_bar)
    for problem in report.problems:
        if options.format == "jsonl":
            print(json.dumps(asdict(problem)))
        else:
            print(f"{problem.kind}: {problem.item}: {problem.reason}")
    for split, pictures in report.pictures.items():
        print(f"{split}: {pictures} pictures, {report.captions[split]} captions", file=sys.stderr)
    print(f"{len(report.problems)} problems", file=sys.stderr)
    return 1 if report.problems else 0
