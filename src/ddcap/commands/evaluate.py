"""`ddcap evaluate`: a model and a data split to scores."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ddcap.commands.arguments import decoding_arguments, decoding_changes
from ddcap.commands.progress import progress_bar


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    evaluate = commands.add_parser(
        "evaluate", parents=[decoding_arguments()], help="score a model on a data split"
    )
    evaluate.add_argument("model", help="'default', a folder or a Hub id")
    evaluate.add_argument("--data", required=True, help="Karpathy-layout JSON")
    evaluate.add_argument("--images", required=True, help="folder of the pictures")
    evaluate.add_argument("--split", default="test", choices=["train", "val", "test"], help="default: test")
    evaluate.add_argument("--limit", type=int, help="only the first so many pictures")
    evaluate.add_argument("--batch-size", type=int, default=16, help="images computed at once (default: 16)")
    evaluate.add_argument("--seed", type=int, default=0, help="for decoding that draws (default: 0)")
    evaluate.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    evaluate.add_argument(
        "--predictions", default="predictions.json", help="where the captions are written before scoring"
    )
    evaluate.add_argument("--output", help="also write the result to this JSON file")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from ddcap.captioner import Captioner
    from ddcap.evaluation.run import evaluate, save_evaluation

    captioner = Captioner.from_pretrained(options.model, options.device)
    evaluation = evaluate(
        captioner,
        options.data,
        options.images,
        options.split,
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        predictions_path=options.predictions,
        progress=progress_bar,
        **decoding_changes(options),
    )
    if options.output:
        save_evaluation(evaluation, options.output)
    if options.json:
        print(json.dumps(evaluation.to_dict(), ensure_ascii=False))
    else:
        print(evaluation.to_text())
    return int(bool(evaluation.failed))
