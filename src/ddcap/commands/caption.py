"""`ddcap caption` and `ddcap infill`: images in, captions out."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ddcap.commands.arguments import (
    decoding_arguments,
    decoding_changes,
    lengths_argument,
    load_captioner,
    model_arguments,
    output_arguments,
    progress_bar,
    share_argument,
    tell,
    word_arguments,
    word_changes,
)
from ddcap.commands.bulk import asked_of, bulk_arguments, caption_into, check_min_sure, is_bulk, tell_choice
from ddcap.errors import ImageError


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    shared = [model_arguments(), decoding_arguments(), output_arguments()]
    caption = commands.add_parser("caption", parents=[*shared, word_arguments()], help="caption images")
    caption.add_argument("images", nargs="+", help="image files, folders, or tar files of images")
    caption.add_argument("--num", type=int, default=1, help="write this many captions per image (default: 1)")
    caption.add_argument(
        "--lengths",
        type=lengths_argument,
        help="write one caption of each length, in tokens with the end token: 6-12, or 6,8,12",
    )
    caption.add_argument(
        "--batch-size", type=int, help="process this many images at a time (default: the fastest)"
    )
    caption.add_argument(
        "--min-sure",
        type=share_argument,
        metavar="P",
        help="withhold captions that the model is less sure of than P (0 to 1), and say why",
    )
    caption.add_argument(
        "--verbose",
        action="store_true",
        help="tell on standard error which CPU, runtime, precision and threads are used, and why",
    )
    bulk_arguments(caption)
    caption.set_defaults(run=_caption)

    concepts = commands.add_parser(
        "concepts", parents=[model_arguments()], help="list the concepts that the model sees in images"
    )
    concepts.add_argument("images", nargs="+", help="image files or folders")
    concepts.add_argument(
        "--format",
        choices=["table", "jsonl"],
        default="table",
        help="print a table, or one JSON object per line (default: table)",
    )
    concepts.set_defaults(run=_concepts)

    infill = commands.add_parser(
        "infill", parents=[*shared, word_arguments(everywhere=False)], help="fill the blanks of a caption"
    )
    infill.add_argument("image", help="image file")
    infill.add_argument(
        "template",
        help="caption with blanks: ___ for one to four tokens, or more if --min-words or --length needs "
        "them; [3] for three",
    )
    infill.set_defaults(run=_infill)


def _caption(options: argparse.Namespace) -> int:
    if is_bulk(options):
        return caption_into(options)
    from rich.console import Console

    from ddcap.data.images import find_images
    from ddcap.display import caption_table, fewer_captions, print_trace

    images = find_images(options.images)
    captioner = load_captioner(options)
    tell_choice(captioner, options)
    results = captioner.caption_each(
        images,
        **asked_of(options),
    )
    failed, shown, min_sure = False, [], options.min_sure
    check_min_sure(captioner, min_sure)
    for result in progress_bar(results, len(images)):
        if result.error is not None:
            failed = True
            tell(result.error)
        elif len(result.captions) < result.asked:
            tell(fewer_captions(result))
        if options.format == "jsonl":
            print(json.dumps(_json_line(result, options.trace, min_sure), ensure_ascii=False), flush=True)
        elif result.error is None:
            shown.append(result)
    if options.format == "table" and shown:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        if options.trace:
            for result in shown:
                for caption in result.captions:
                    print_trace(console, str(result.source), caption)
        else:
            console.print(caption_table(shown, min_sure))
    return int(failed)


def _concepts(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ddcap.data.images import find_images
    from ddcap.display import concept_line

    captioner = load_captioner(options)
    console, failed = Console(highlight=False, soft_wrap=True), False
    for image in find_images(options.images):
        try:
            seen, persons = captioner.seen(image)
        except ImageError as error:
            failed = True
            tell(str(error))
            if options.format == "jsonl":
                print(json.dumps({"image": str(image), "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        if options.format == "jsonl":
            pairs = {concept.word: round(concept.confidence, 4) for concept in seen}
            line: dict[str, Any] = {"image": str(image), "concepts": pairs}
            if persons is not None:
                line["persons"] = {**vars(persons), "probability": round(persons.probability, 4)}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            console.print(concept_line(str(image), seen, persons))
    return int(failed)


def _infill(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ddcap.display import print_trace

    captioner = load_captioner(options)
    caption = captioner.infill(
        options.image,
        options.template,
        seed=options.seed,
        concepts=options.concepts,
        **word_changes(options),
        **decoding_changes(options),
    )
    if options.format == "jsonl":
        line = {"image": options.image, "template": options.template, **_json_caption(caption, options.trace)}
        print(json.dumps(line, ensure_ascii=False))
    elif options.trace:
        print_trace(Console(highlight=False), options.image, caption)
    else:
        print(caption.text)
    return 0


def _json_line(result: Any, with_trace: bool, min_sure: float | None) -> dict[str, Any]:
    from ddcap.decoding.caption import withheld_of

    line: dict[str, Any] = {"image": str(result.source)}
    if result.error is not None:
        return {**line, "error": result.error}
    line.update(_json_caption(result.captions[0], with_trace), **withheld_of(result, min_sure))
    if result.asked > 1:
        line["captions"] = [_json_caption(caption, with_trace) for caption in result.captions]
    return line


def _json_caption(caption: Any, with_trace: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from ddcap.decoding.caption import confidence_of

    line: dict[str, Any] = {
        "caption": caption.text,
        "score": round(caption.score, 4),
        "length": caption.length,
        "tokens": list(caption.tokens),
        "confidences": [round(value, 4) for value in caption.confidences],
    }
    line.update(confidence_of(caption))
    if with_trace:
        line["trace"] = [asdict(event) for event in caption.trace.events]
    return line
