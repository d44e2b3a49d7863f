"""`ddcap calibrate`: fit the probability `sure` on images with human captions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddcap.commands.arguments import add_precision, load_captioner, progress_bar
from ddcap.errors import DataError


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    calibrate = commands.add_parser(
        "calibrate", help="fit a model's confidence on captioned images that it was not trained on"
    )
    calibrate.add_argument("model", help="folder of the model; the command writes the result into it")
    calibrate.add_argument(
        "--data",
        action="append",
        required=True,
        help="read captions from this Karpathy JSON; repeat the option for more",
    )
    calibrate.add_argument(
        "--images", action="append", required=True, help="find the images in this folder; give one per --data"
    )
    calibrate.add_argument(
        "--split", default="val", choices=["train", "val", "test"], help="fit on this split (default: val)"
    )
    calibrate.add_argument(
        "--unknown",
        required=True,
        metavar="FOLDER",
        help="use the images in FOLDER as examples that the model does not know",
    )
    calibrate.add_argument(
        "--training",
        type=int,
        default=3000,
        help="use this many images of the split train as examples that the model knows (default: 3000)",
    )
    calibrate.add_argument(
        "--device", default="cpu", help="run on this device, for example cuda (default: cpu)"
    )
    add_precision(calibrate)
    calibrate.set_defaults(run=_calibrate)


def _calibrate(options: argparse.Namespace) -> int:
    from ddcap.data.images import find_images
    from ddcap.data.records import load_records
    from ddcap.evaluation.calibration import calibrate, features_of, judge_captions

    if not Path(options.model).is_dir():
        raise DataError(f"{options.model}: no such folder; give the folder of a model")
    if len(options.data) != len(options.images):
        raise DataError(
            f"{len(options.data)} --data and {len(options.images)} --images; give one --images per --data"
        )
    captioner = load_captioner(options)
    sources = list(zip(options.data, options.images, strict=True))
    splits = [load_records(*source, options.split) for source in sources]
    records = [record for source in sources for record in load_records(*source)]
    paths = [record.path for record in records if record.split == "train"]
    paths = paths[:: max(1, len(paths) // options.training)][: options.training]
    judged = [judge_captions(captioner, records, progress=progress_bar) for records in splits]
    training = features_of(captioner, paths, progress_bar)
    unknown = features_of(captioner, [Path(path) for path in find_images([options.unknown])], progress_bar)
    calibrate(captioner, judged, training, unknown).save(Path(options.model))
    summary = {
        "captions": sum(len(one.captions) for one in judged),
        "accepted": round(sum(float(one.accepted.sum()) for one in judged)),
        "faithful": round(sum(float(one.faithful.sum()) for one in judged)),
        "training": len(training),
        "unknown": len(unknown),
    }
    print(json.dumps(summary))
    return 0
