"""`ddcap evaluate`, `ddcap metrics` and `ddcap compare`: score captions and compare scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddcap.commands.arguments import (
    add_precision,
    decoding_arguments,
    decoding_changes,
    load_captioner,
    progress_bar,
)
from ddcap.errors import DataError


def scoring_arguments() -> argparse.ArgumentParser:
    """Options of scoring and output; `scoring_settings` and `report` read them."""
    scoring = argparse.ArgumentParser(add_help=False)
    data = scoring.add_argument_group("data")
    data.add_argument("--data", required=True, help="read captions from this Karpathy JSON")
    data.add_argument(
        "--split", default="test", choices=["train", "val", "test"], help="score this split (default: test)"
    )
    group = scoring.add_argument_group("scoring")
    group.add_argument("--fast", action="store_true", help="skip METEOR and SPICE, which need Java and time")
    group.add_argument(
        "--corenlp", metavar="FOLDER", help="find the jars of CoreNLP 3.6.0 in FOLDER, for SPICE"
    )
    group.add_argument(
        "--clip", metavar="MODEL", help="add CLIPScore and RefCLIPScore, with a CLIP from a folder or the Hub"
    )
    group.add_argument(
        "--objects",
        metavar="FILE",
        help='count objects from this JSON file as seen, for CHAIR: {"image id": ["person", "dog"], ...}',
    )
    group.add_argument("--device", default="cpu", help="run on this device, for example cuda (default: cpu)")
    group.add_argument(
        "--idf",
        metavar="FILE",
        help="read CIDEr's document frequencies from FILE (default: count them on the whole split)",
    )
    group.add_argument("--save-idf", metavar="FILE", help="write the document frequencies to FILE")
    group.add_argument(
        "--tokenization",
        choices=["ptb-java", "ptb-python"],
        help="tokenize captions with this program (default: ptb-java if Java is installed)",
    )
    output = scoring.add_argument_group("output")
    output.add_argument("--output", help="also write the result to this JSON file, for `ddcap compare`")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    return scoring


def scoring_settings(options: argparse.Namespace) -> Any:
    """The `ScoringSettings` that the command line names, with its files read.

    Raises:
        DDCapError: if one cannot be used, or a folder to write into does not exist.
    """
    for path in filter(None, (options.output, options.save_idf)):
        if not Path(path).absolute().parent.is_dir():
            raise DataError(f"{path}: its folder does not exist; create it, or choose another path")
    from ddcap.evaluation.hallucination import load_objects
    from ddcap.evaluation.metrics import DocumentFrequencies
    from ddcap.evaluation.run import ScoringSettings

    clip = None
    if options.clip is not None:
        from ddcap.evaluation.clip_score import ClipScorer

        clip = ClipScorer(options.clip, options.device)
    return ScoringSettings(
        tokenization=options.tokenization,
        document_frequencies=DocumentFrequencies.load(options.idf) if options.idf else None,
        fast=options.fast,
        corenlp=Path(options.corenlp) if options.corenlp else None,
        clip=clip,
        objects=load_objects(options.objects) if options.objects else None,
    )


def report(evaluation: Any, options: argparse.Namespace) -> int:
    """Write and print an evaluation; return the exit status, 1 if an image has no caption."""
    from ddcap.evaluation.result import save_evaluation

    if options.output:
        save_evaluation(evaluation, options.output)
    if options.save_idf:
        evaluation.scores.document_frequencies.save(options.save_idf)
    print(json.dumps(evaluation.to_dict(), ensure_ascii=False) if options.json else evaluation.to_text())
    return int(bool(evaluation.failed))


# `ddcap evaluate` and `ddcap metrics`: score a model, or captions from elsewhere, on a data split.


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    evaluate = commands.add_parser(
        "evaluate", parents=[scoring_arguments(), decoding_arguments()], help="score a model on a data split"
    )
    evaluate.add_argument("model", help="'default', a folder or a Hub id")
    evaluate.add_argument("--images", required=True, help="find the images in this folder")
    evaluate.add_argument("--limit", type=int, help="score the first LIMIT images only")
    evaluate.add_argument(
        "--batch-size", type=int, default=16, help="process this many images at a time (default: 16)"
    )
    add_precision(evaluate)
    evaluate.add_argument(
        "--seed", type=int, default=0, help="seed the random numbers of sampling (default: 0)"
    )
    evaluate.add_argument(
        "--predictions",
        help="write the captions to this JSON file (default: to --output until they are scored)",
    )
    evaluate.set_defaults(run=_evaluate)

    metrics = commands.add_parser(
        "metrics",
        parents=[scoring_arguments()],
        help="score the captions in a file on a data split",
    )
    metrics.add_argument("predictions", help='JSON file: [{"image_id": ..., "caption": ...}, ...]')
    metrics.add_argument(
        "--images", default=".", help="find the images in this folder, for CLIPScore only (default: .)"
    )
    metrics.set_defaults(run=_metrics)

    _add_compare(commands)


def _evaluate(options: argparse.Namespace) -> int:
    from ddcap.evaluation.run import evaluate
    from ddcap.machine import join_processes, leave_together, own_device

    processes = join_processes()
    options.device = own_device(options.device)
    scoring = scoring_settings(options)
    captioner = load_captioner(options)
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


def _metrics(options: argparse.Namespace) -> int:
    from ddcap.evaluation.run import load_predictions, load_split, score_predictions

    scoring = scoring_settings(options)
    predictions = load_predictions(options.predictions)
    records, training_captions = load_split(options.data, options.images, options.split)
    evaluation = score_predictions(predictions, records, scoring, training_captions=training_captions)
    return report(evaluation, options)


# `ddcap compare`: two evaluations of the same images.


def _add_compare(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    compare = commands.add_parser(
        "compare", help="test whether two evaluations of the same images differ significantly"
    )
    compare.add_argument("first", help="JSON file written by evaluate --output or metrics --output")
    compare.add_argument("second", help="JSON file to compare with")
    compare.add_argument("--json", action="store_true", help="print one JSON object")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from ddcap.evaluation.comparison import compare

    comparison = compare(options.first, options.second)
    print(json.dumps(comparison.to_dict(), ensure_ascii=False) if options.json else comparison.to_text())
    return 0
