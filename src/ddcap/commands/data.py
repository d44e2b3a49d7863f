"""`ddcap data`: look a data set over before training on it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from ddcap.commands.arguments import progress_bar


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

    shard = actions.add_parser("shard", help="write a split as webdataset tar files with a manifest")
    shard.add_argument("captions", help="as for check")
    shard.add_argument("output", help="folder to write; started again, it goes on where it stopped")
    shard.add_argument("--images", default=".", help="folder that picture names start from")
    shard.add_argument(
        "--split", default="train", choices=["train", "val", "test"], help="pictures to take (default: train)"
    )
    shard.add_argument(
        "--samples-per-shard", type=int, default=1000, help="pictures of a shard (default: 1000)"
    )
    shard.add_argument(
        "--side", type=int, help="bring the short side down to so many pixels; else files stay as they are"
    )
    shard.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="shards written side by side")
    shard.set_defaults(run=_shard)


def _check(options: argparse.Namespace) -> int:
    from ddcap.data.preparation import check_data

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


def _shard(options: argparse.Namespace) -> int:
    from ddcap.data.preparation import write_shards
    from ddcap.data.records import load_records

    result = write_shards(
        load_records(options.captions, options.images, options.split),
        options.output,
        samples_per_shard=options.samples_per_shard,
        side=options.side,
        processes=options.workers,
        progress=lambda shards, count: progress_bar(shards, count, "shards"),
    )
    for reason in result.unreadable:
        print(f"left out: {reason}", file=sys.stderr)
    print(
        f"{result.shards} shards, {result.samples} pictures, {len(result.unreadable)} left out",
        file=sys.stderr,
    )
    print(options.output)
    return 0
