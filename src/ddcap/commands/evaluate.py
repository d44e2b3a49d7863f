"""`ddcap evaluate` and `ddcap score`: a model, or captions from elsewhere, and a data split to scores."""

from __future__ import annotations

import argparse
from typing import Any

from ddcap.commands.arguments import add_precision, decoding_arguments, decoding_changes
from ddcap.commands.progress import progress_bar
from ddcap.commands.scoring import report, scoring_arguments, scoring_settings


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    evaluate = commands.add_parser(
        "evaluate", parents=[scoring_arguments(), decoding_arguments()], help="score a model on a data split"
    )
    evaluate.add_argument("model", help="'default', a folder or a Hub id")
    evaluate.add_argument("--images", required=True, help="folder of the pictures")
    evaluate.add_argument("--limit", type=int, help="only the first so many pictures")
    evaluate.add_argument("--batch-size", type=int, default=16, help="images computed at once (default: 16)")
    add_precision(evaluate)
    evaluate.add_argument("--seed", type=int, default=0, help="for decoding that draws (default: 0)")
    evaluate.add_argument(
        "--predictions", help="write the captions to this JSON file (else to --output, until it is scored)"
    )
    evaluate.set_defaults(run=_evaluate)

    score = commands.add_parser(
        "score", parents=[scoring_arguments()], help="score captions of a data split, wherever they are from"
    )
    score.add_argument("predictions", help='JSON file: [{"image_id": ..., "caption": ...}, ...]')
    score.add_argument("--images", default=".", help="folder of the pictures; only CLIPScore looks at them")
    score.set_defaults(run=_score)


def _evaluate(options: argparse.Namespace) -> int:
    from ddcap.captioner import Captioner
    from ddcap.evaluation.run import evaluate
    from ddcap.processes import join_processes, leave_together, own_device

    processes = join_processes()
    options.device = own_device(options.device)
    scoring = scoring_settings(options)
    captioner = Captioner.from_pretrained(options.model, options.device, options.precision)
    evaluation = evaluate(
        captioner,
        options.data,
        options.images,
        options.split,
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        predictions_path=options.predictions or options.output,
        scoring=scoring,
        progress=progress_bar,
        processes=processes,
        **decoding_changes(options),
    )
    return leave_together(0 if evaluation is None else report(evaluation, options))


def _score(options: argparse.Namespace) -> int:
    from ddcap.evaluation.run import load_split
    from ddcap.evaluation.scoring import load_predictions, score_predictions

    scoring = scoring_settings(options)
    predictions = load_predictions(options.predictions)
    records, training_captions = load_split(options.data, options.images, options.split)
    evaluation = score_predictions(predictions, records, scoring, training_captions=training_captions)
    return report(evaluation, options)
