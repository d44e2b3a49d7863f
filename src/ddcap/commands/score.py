"""`ddcap score` and `ddcap rewrite`: what a picture says for the words of a given caption."""

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
    word_arguments,
    word_changes,
)
from ddcap.errors import DDCapError


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    score = commands.add_parser(
        "score",
        parents=[model_arguments()],
        help="how well a picture supports given captions, word by word; or a data set's pairs, worst first",
    )
    score.add_argument("image", nargs="?", help="image file")
    score.add_argument(
        "captions", nargs="*", help="captions of the image; a [phrase in brackets] counts as one word"
    )
    score.add_argument(
        "--pairs",
        metavar="DATA",
        help="pictures with captions, instead of one image: a Karpathy JSON, a CSV, or a folder of pictures "
        "with texts beside them; the pairs that fit least come first",
    )
    score.add_argument("--images", default=".", metavar="FOLDER", help="with --pairs: folder of the pictures")
    score.add_argument("--split", choices=["train", "val", "test"], help="with --pairs: only this split")
    score.add_argument("--format", choices=["table", "jsonl"], default="table", help="for people or programs")
    score.set_defaults(run=_score)

    rewrite = commands.add_parser(
        "rewrite",
        parents=[
            model_arguments(),
            decoding_arguments(),
            output_arguments(),
            word_arguments(everywhere=False),
        ],
        help="replace the words of a caption that the picture does not support",
    )
    rewrite.add_argument("image", help="image file")
    rewrite.add_argument("caption", help="the caption")
    rewrite.add_argument("--keep", action="append", default=[], metavar="WORDS", help="words that stay")
    rewrite.set_defaults(run=_rewrite)


def _score(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ddcap.display import evidence_lines

    if options.pairs is not None:
        return _score_pairs(options)
    if options.image is None or not options.captions:
        raise DDCapError("give an image and at least one caption of it, or --pairs")
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
    from ddcap.machine import ahead

    if options.image is not None:
        raise DDCapError(f"{options.image!r} beside --pairs: give one or the other")
    records = load_records(options.pairs, options.images, options.split)
    captioner = load_captioner(options)
    scored, failed = [], False

    def found_of(record: Any) -> Any:
        try:
            return captioner.score(record.path, record.captions)
        except DDCapError as error:
            return error

    for record, found in progress_bar(ahead(found_of, records, workers=1), len(records), "pairs"):
        if isinstance(found, DDCapError):
            failed = True
            scored.append((float("-inf"), {"image": str(record.path), "error": str(found)}))
            continue
        for text, evidence in zip(record.captions, found, strict=True):
            scored.append((evidence.fit, {"image": str(record.path), **evidence_json(text, evidence)}))
    for fit, line in sorted(scored, key=lambda one: one[0]):
        if options.format == "jsonl":
            print(json.dumps(line, ensure_ascii=False))
        elif "error" in line:
            print(f"error   {line['error']}")
        else:
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
    """What programs read of a caption's evidence."""
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
