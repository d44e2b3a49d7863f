"""`ddcap export`, `ddcap push` and `ddcap convert`: a model written in another form or to another place."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ddcap.errors import DDCapError


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    export = commands.add_parser(
        "export", help="write a model in fewer bits, as ONNX graphs, with other default decoding settings"
    )
    export.add_argument("model", help="'default', a folder or a Hub id")
    export.add_argument("output", help="folder to write")
    export.add_argument(
        "decoding", nargs="*", help="decoding settings to make the default: guidance=1.3 steps=10"
    )
    export.add_argument(
        "--dtype",
        choices=["int8", "float16", "bfloat16", "float32"],
        help="of the stored weights; int8: large matrices, with a scale for each output (default: float16)",
    )
    export.add_argument(
        "--onnx",
        action="store_true",
        help="also as ONNX graphs, in float32 and int8, which caption without PyTorch; the image encoder's "
        "weights go along",
    )
    export.add_argument(
        "--web",
        action="store_true",
        help="instead a static page that captions in the browser, without a server (docs/browser.md); of a "
        "model with ONNX graphs, as the default is",
    )
    export.add_argument(
        "--onnxruntime-web",
        metavar="FOLDER",
        help="--web: its npm package, unpacked (default: it is fetched by npm)",
    )
    export.set_defaults(run=_export)

    push = commands.add_parser("push", help="put a model with a generated card onto the Hub or into a folder")
    push.add_argument("model", help="'default', a folder or a Hub id")
    push.add_argument("target", help="Hub id (owner/name), or a folder (./name)")
    push.add_argument("--private", action="store_true", default=None, help="of a new Hub repository")
    push.add_argument("--evaluation", help="JSON file printed by 'ddcap evaluate --json': its figures")
    push.add_argument("--licence", help="for the card, for instance mit")
    push.add_argument("--trained-on", help="for the card, one line on the training data")
    push.set_defaults(run=_push)

    convert = commands.add_parser(
        "convert", help="turn a checkpoint of the authors' release into a model folder"
    )
    convert.add_argument("checkpoint", help="the released .pt file")
    convert.add_argument("output", help="folder to write")
    convert.add_argument("--encoder", default="openai/clip-vit-base-patch16", help="CLIP folder or Hub id")
    convert.add_argument("--revision", help="of the Hub's CLIP: branch, tag or commit (default: the newest)")
    convert.add_argument("--tokenizer", help="folder or Hub id of GPT-2's tokenizer")
    convert.add_argument("--heads", type=int, help="attention heads (default: width / 64, as in GPT-2)")
    convert.set_defaults(run=_convert)


def _changes(given: Sequence[str]) -> dict[str, Any]:
    """Settings that are written as name=value."""
    import yaml

    changes = {}
    for change in given:
        name, separator, value = change.partition("=")
        if not separator:
            raise DDCapError(f"{change!r} is not of the form setting=value, for instance guidance=1.3")
        changes[name] = yaml.safe_load(value)
    return changes


def _export(options: argparse.Namespace) -> int:
    changes = _changes(options.decoding)
    if options.web:
        if options.onnx:
            raise DDCapError("--web writes a page and --onnx a model; do one after the other")
        if options.dtype is not None:
            raise DDCapError(
                "--dtype: a page has the weights as the model's folder has them; export that first"
            )
        from ddcap.browser.export import export_page

        export_page(options.model, options.output, runtime=options.onnxruntime_web, **changes)
        print(options.output)
        return 0
    import torch

    from ddcap.captioner import Captioner

    dtype = options.dtype or "float16"
    captioner = Captioner.from_pretrained(options.model, runtime="torch")
    if options.onnx:
        from ddcap.model.onnx_export import check_exportable, export_onnx

        check_exportable(captioner.model)
        if dtype == "bfloat16":
            raise DDCapError(
                "--dtype bfloat16: numpy cannot read it; with --onnx use int8, float16 or float32"
            )
        captioner.model.carry_encoder()
    captioner.save(options.output, dtype=getattr(torch, dtype), **changes)
    if options.onnx:
        export_onnx(options.output)
    print(options.output)
    return 0


def _push(options: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from ddcap.captioner import Captioner

    evaluation = None
    if options.evaluation is not None:
        try:
            evaluation = json.loads(Path(options.evaluation).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DDCapError(f"{options.evaluation}: not valid JSON ({error}); evaluate again") from None
    captioner = Captioner.from_pretrained(options.model, runtime="torch")
    print(
        captioner.push_to_hub(
            options.target,
            private=options.private,
            evaluation=evaluation,
            licence=options.licence,
            data=options.trained_on,
        )
    )
    return 0


def _convert(options: argparse.Namespace) -> int:
    from ddcap.model.release import convert

    convert(
        options.checkpoint,
        options.output,
        encoder=options.encoder,
        revision=options.revision,
        tokenizer=options.tokenizer,
        heads=options.heads,
    )
    print(options.output)
    return 0
