"""`ddcap data`: check a data set before training, or write it as shards."""

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
    data = commands.add_parser("data", help="check a data set, or write it as shards")
    actions = data.add_subparsers(required=True, metavar="action")
    check = actions.add_parser(
        "check", help="list missing images, unreadable images, and entries without captions"
    )
    check.add_argument(
        "captions", help="Karpathy JSON, CSV (image, caption), or folder with a .txt beside each image"
    )
    check.add_argument("--images", default=".", help="find the images in this folder (default: .)")
    check.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="run this many processes (default: one per CPU)",
    )
    check.add_argument(
        "--format",
        choices=["text", "jsonl"],
        default="text",
        help="print text, or one JSON object per line (default: text)",
    )
    check.set_defaults(run=_check)

    shard = actions.add_parser("shard", help="write a split as webdataset tar files with a manifest")
    shard.add_argument(
        "captions", help="Karpathy JSON, CSV (image, caption), or folder with a .txt beside each image"
    )
    shard.add_argument("output", help="folder to write; run the command again to continue")
    shard.add_argument("--images", default=".", help="find the images in this folder (default: .)")
    shard.add_argument(
        "--split", default="train", choices=["train", "val", "test"], help="write this split (default: train)"
    )
    shard.add_argument(
        "--samples-per-shard",
        type=int,
        default=1000,
        help="put this many images into a shard (default: 1000)",
    )
    shard.add_argument(
        "--side",
        type=int,
        help="shrink the short side to this many pixels (default: keep the files as they are)",
    )
    shard.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="run this many processes (default: one per CPU)",
    )
    shard.set_defaults(run=_shard)


def _check(options: argparse.Namespace) -> int:
    from ddcap.data.preparation import check_data

    report = check_data(options.captions, options.images, processes=options.workers, progress=progress_bar)
    for problem in report.problems:
        if options.format == "jsonl":
            print(json.dumps(asdict(problem)))
        else:
            print(f"{problem.kind}: {problem.item}: {problem.reason}")
    for split, images in report.images.items():
        print(f"{split}: {images} images, {report.captions[split]} captions", file=sys.stderr)
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
        f"{result.shards} shards, {result.samples} images, {len(result.unreadable)} left out",
        file=sys.stderr,
    )
    print(options.output)
    return 0
