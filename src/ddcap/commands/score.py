"""`ddcap score` and `ddcap rewrite`: check and correct a given caption."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ddcap.commands.arguments import (
    decoding_arguments,
    decoding_changes,
    load_captioner,
    model_arguments,
    output_arguments,
    progress_bar,
    tell,
    word_arguments,
    word_changes,
)
from ddcap.errors import DDCapError, ImageError


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    score = commands.add_parser(
        "score",
        parents=[model_arguments()],
        help="score how well an image supports each word of given captions, or rank the pairs of a data set",
    )
    score.add_argument("image", nargs="?", help="image file")
    score.add_argument(
        "captions", nargs="*", help="captions of the image; a [phrase in brackets] counts as one word"
    )
    score.add_argument(
        "--pairs",
        metavar="DATA",
        help="score the pairs of a data set instead of one image, worst first: Karpathy JSON, CSV, or folder "
        "with a .txt beside each image",
    )
    score.add_argument(
        "--images",
        default=".",
        metavar="FOLDER",
        help="with --pairs: find the images in this folder (default: .)",
    )
    score.add_argument(
        "--split", choices=["train", "val", "test"], help="with --pairs: score this split only"
    )
    score.add_argument(
        "--format",
        choices=["table", "jsonl"],
        default="table",
        help="print a table, or one JSON object per line (default: table)",
    )
    score.set_defaults(run=_score)

    rewrite = commands.add_parser(
        "rewrite",
        parents=[
            model_arguments(),
            decoding_arguments(),
            output_arguments(),
            word_arguments(everywhere=False),
        ],
        help="replace the words of a caption that the image does not support",
    )
    rewrite.add_argument("image", help="image file")
    rewrite.add_argument("caption", help="caption to rewrite")
    rewrite.add_argument("--keep", action="append", default=[], metavar="WORDS", help="keep these words")
    rewrite.set_defaults(run=_rewrite)


def _score(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ddcap.display import evidence_lines

    if options.pairs is not None:
        return _score_pairs(options)
    if options.image is None or not options.captions:
        raise DDCapError("score: no captions to score; give an image and its captions, or --pairs DATA")
    captioner = load_captioner(options)
    found = captioner.score(options.image, options.captions)
    console = Console(highlight=False)
    for text, evidence in zip(options.captions, found, strict=True):
        if options.format == "jsonl":
            line = {"image": options.image, **evidence_json(text, evidence)}
            (own,) = captioner.log_likelihood(options.image, text.replace("[", "").replace("]", ""))
            print(json.dumps({**line, "sampler_log_likelihood": round(own, 4)}, ensure_ascii=False))
        else:
            for shown in evidence_lines(text, evidence):
                console.print(shown)
    return 0


def _score_pairs(options: argparse.Namespace) -> int:
    from ddcap.data.records import load_records
    from ddcap.decoding.scoring import check_scores
    from ddcap.machine import ahead

    if options.image is not None:
        raise DDCapError(f"{options.image!r} cannot be combined with --pairs; give one of them")
    records = load_records(options.pairs, options.images, options.split)
    captioner = load_captioner(options)
    check_scores(captioner.model)
    scored, failed = [], False

    def found_of(record: Any) -> list[Any]:
        """The evidence of each caption, or why there is none; of all together if nothing is wrong."""
        try:
            return list(captioner.score(record.path, record.captions))
        except ImageError as error:
            return [error]
        except DDCapError as error:
            return [error] if len(record.captions) == 1 else [alone(record, text) for text in record.captions]

    def alone(record: Any, text: str) -> Any:
        try:
            return captioner.score(record.path, text)[0]
        except DDCapError as error:
            return error

    for record, found in progress_bar(ahead(found_of, records, workers=1), len(records), "pairs"):
        for text, evidence in zip(record.captions, found, strict=False):
            line = {"image": str(record.path)}
            if isinstance(evidence, DDCapError):
                failed = True
                tell(str(evidence))
                scored.append((float("-inf"), {**line, "error": str(evidence)}))
            else:
                scored.append((evidence.fit, {**line, **evidence_json(text, evidence)}))
    for fit, line in sorted(scored, key=lambda one: one[0]):
        if options.format == "jsonl":
            print(json.dumps(line, ensure_ascii=False))
        elif "error" not in line:
            print(f"{fit:+.3f}  {line['image']}  {line['caption']}")
    return 1 if failed else 0


def _rewrite(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ddcap.display import rewriting_lines

    result = load_captioner(options).rewrite(
        options.image,
        options.caption,
        keep=options.keep,
        seed=options.seed,
        concepts=options.concepts,
        **word_changes(options),
        **decoding_changes(options),
    )
    if options.format == "jsonl":
        line = {
            "image": options.image,
            "before": evidence_json(options.caption, result.before),
            "template": result.template,
            "after": evidence_json(result.text, result.evidence),
        }
        print(json.dumps(line, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for shown in rewriting_lines(result):
        console.print(shown)
    return 0


def evidence_json(text: str, evidence: Any) -> dict[str, Any]:
    """A caption's evidence as JSON values."""
    return {
        "caption": text,
        "fit": round(evidence.fit, 4),
        "gain": round(evidence.gain, 4),
        "log_likelihood": round(evidence.log_likelihood, 4),
        "words": [
            {
                "word": one.word,
                "gain": round(one.gain, 4),
                "log_probability": round(one.log_probability, 4),
                "without_image": round(one.without_image, 4),
            }
            for one in evidence.words
        ],
    }
