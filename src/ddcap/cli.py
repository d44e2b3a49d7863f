"""The command line: parses, calls one function. Results go to standard output, all else to standard error."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ddcap import __version__
from ddcap.errors import DDCapError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 fine, 1 an error was reported, 130 interrupted."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except DDCapError as error:
        print(f"ddcap: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; Python would complain at exit
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"ddcap: {where}{error.strerror or error}; check path, permissions and free space",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("ddcap: interrupted", file=sys.stderr)
        return 130


def _caption(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ddcap.captioner import Captioner
    from ddcap.data.images import find_images
    from ddcap.display import caption_table, print_trace

    images = find_images(options.images)
    captioner = Captioner.from_pretrained(options.model, options.device)
    results = captioner.caption_each(
        images, num=options.num, seed=options.seed, batch_size=options.batch_size, **_decoding(options)
    )
    failed = False
    shown = []
    for result in _progress(results, len(images)):
        failed |= result.error is not None
        if options.format == "jsonl":
            print(json.dumps(_json_line(result, options.trace), ensure_ascii=False), flush=True)
        else:
            shown.append(result)
    if options.format == "table":
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        if options.trace:
            for result in shown:
                for caption in result.captions:
                    print_trace(console, str(result.source), caption)
            shown = [result for result in shown if result.error is not None]
        if shown:
            console.print(caption_table(shown))
    return int(failed)


def _infill(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ddcap.captioner import Captioner
    from ddcap.display import print_trace

    captioner = Captioner.from_pretrained(options.model, options.device)
    caption = captioner.infill(options.image, options.template, seed=options.seed, **_decoding(options))
    if options.format == "jsonl":
        line = {"image": options.image, "template": options.template, **_json_caption(caption, options.trace)}
        print(json.dumps(line, ensure_ascii=False))
    elif options.trace:
        print_trace(Console(highlight=False), options.image, caption)
    else:
        print(caption.text)
    return 0


def _train(options: argparse.Namespace) -> int:
    from ddcap.recipe import load_recipe
    from ddcap.training.loop import train

    recipe = load_recipe(options.recipe, options.overrides)
    folder = train(
        recipe, resume=options.resume, progress_bar=lambda shards: _progress(shards, len(shards), "features")
    )
    print(folder)
    return 0


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
        progress=_progress,
        **_decoding(options),
    )
    if options.output:
        save_evaluation(evaluation, options.output)
    if options.json:
        print(json.dumps(evaluation.to_dict(), ensure_ascii=False))
    else:
        print(evaluation.to_text())
    return int(bool(evaluation.failed))


def _export(options: argparse.Namespace) -> int:
    import torch
    import yaml

    from ddcap.captioner import Captioner

    changes = {}
    for change in options.decoding:
        name, separator, value = change.partition("=")
        if not separator:
            raise DDCapError(f"{change!r} is not of the form setting=value, for instance guidance=1.3")
        changes[name] = yaml.safe_load(value)
    captioner = Captioner.from_pretrained(options.model)
    captioner.save(options.output, dtype=getattr(torch, options.dtype), **changes)
    print(options.output)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from ddcap.model.released_checkpoint import convert

    convert(
        options.checkpoint,
        options.output,
        encoder=options.encoder,
        tokenizer=options.tokenizer,
        heads=options.heads,
    )
    print(options.output)
    return 0


def _length(text: str) -> int | str:
    if text == "predicted":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tokens nor 'predicted'") from None


def _decoding(options: argparse.Namespace) -> dict[str, Any]:
    names = ("method", "steps", "guidance", "length", "temperature")
    return {name: getattr(options, name) for name in names}


def _json_line(result: Any, with_trace: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"image": str(result.source)}
    if result.error is not None:
        return {**line, "error": result.error}
    line.update(_json_caption(result.captions[0], with_trace))
    if len(result.captions) > 1:
        line["captions"] = [_json_caption(caption, with_trace) for caption in result.captions]
    return line


def _json_caption(caption: Any, with_trace: bool) -> dict[str, Any]:
    from dataclasses import asdict

    line = {
        "caption": caption.text,
        "score": round(caption.score, 4),
        "length": caption.length,
        "tokens": list(caption.tokens),
        "confidences": [round(value, 4) for value in caption.confidences],
    }
    if with_trace:
        line["trace"] = [asdict(event) for event in caption.trace.events]
    return line


def _progress(items: Iterable[Any], total: int, what: str = "images") -> Iterable[Any]:
    """A bar on standard error where that is a terminal and there is something to wait for."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if total < 8 or not console.is_terminal:
        return items
    return track(items, description=what, total=total, console=console, transient=True)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="ddcap", description="Discrete diffusion for image captioning.")
    parser.add_argument("--version", action="version", version=f"ddcap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default="default", help="'default', a folder or a Hub id")
    model.add_argument("--device", default="cpu", help="where to run, for instance cuda (default: cpu)")
    model.add_argument("--seed", type=int, default=0, help="for decoding that draws (default: 0)")

    decoding = argparse.ArgumentParser(add_help=False)
    group = decoding.add_argument_group("decoding", "each defaults to the model's own setting")
    group.add_argument(
        "--method", choices=["best_first", "ancestral"], help="best-first, or the normal reverse process"
    )
    group.add_argument("--steps", type=int, help="denoising steps; fewer is faster")
    group.add_argument("--guidance", type=float, help="s of equation 8; over 1 follows the image more")
    group.add_argument(
        "--length", type=_length, help="tokens of the caption, end token included, or 'predicted'"
    )
    group.add_argument("--temperature", type=float, help="0 takes the likeliest token, 1 samples")

    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--trace", action="store_true", help="show what was committed when")
    output.add_argument(
        "--format", choices=["table", "jsonl"], default="table", help="for people or for programs"
    )

    caption = commands.add_parser("caption", parents=[model, decoding, output], help="caption images")
    caption.add_argument("images", nargs="+", help="image files and folders")
    caption.add_argument("--num", type=int, default=1, help="captions per image (default: 1)")
    caption.add_argument("--batch-size", type=int, default=16, help="images computed at once (default: 16)")
    caption.set_defaults(run=_caption)

    infill = commands.add_parser(
        "infill", parents=[model, decoding, output], help="fill the blanks of a caption"
    )
    infill.add_argument("image", help="image file")
    infill.add_argument("template", help="words with blanks: ___ of any width, [3] of three tokens")
    infill.set_defaults(run=_infill)

    train = commands.add_parser("train", help="train a model from a recipe")
    train.add_argument("recipe", help="YAML file, see recipes/")
    train.add_argument("overrides", nargs="*", help="settings to change: section.key=value")
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of training.output"
    )
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", parents=[decoding], help="score a model on a data split")
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

    export = commands.add_parser(
        "export", help="write a model in half precision, with other default decoding settings"
    )
    export.add_argument("model", help="'default', a folder or a Hub id")
    export.add_argument("output", help="folder to write")
    export.add_argument(
        "decoding", nargs="*", help="decoding settings to make the default: guidance=1.3 steps=10"
    )
    export.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    export.set_defaults(run=_export)

    convert = commands.add_parser(
        "convert", help="turn a checkpoint of the authors' release into a model folder"
    )
    convert.add_argument("checkpoint", help="the released .pt file")
    convert.add_argument("output", help="folder to write")
    convert.add_argument("--encoder", default="openai/clip-vit-base-patch16", help="CLIP folder or Hub id")
    convert.add_argument("--tokenizer", help="folder or Hub id of GPT-2's tokenizer")
    convert.add_argument("--heads", type=int, help="attention heads (default: width / 64, as in GPT-2)")
    convert.set_defaults(run=_convert)
    return parser


if __name__ == "__main__":
    sys.exit(main())
