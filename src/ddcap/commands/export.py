"""`ddcap export`, `ddcap push` and `ddcap convert`: write a model in another form or place."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ddcap.errors import DDCapError


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    export = commands.add_parser(
        "export", help="write a model in another precision, as ONNX graphs, or with other decoding defaults"
    )
    export.add_argument("model", help="'default', a folder or a Hub id")
    export.add_argument("output", help="folder to write")
    export.add_argument(
        "decoding",
        nargs="*",
        help="decoding settings to store as defaults, for example guidance=1.3 steps=10",
    )
    export.add_argument(
        "--dtype",
        choices=["int8", "float16", "bfloat16", "float32"],
        help="store weights in this type; int8 quantizes the large matrices, with a scale per output "
        "(default: float16)",
    )
    export.add_argument(
        "--onnx",
        action="store_true",
        help="also write ONNX graphs in float32 and int8, which need no PyTorch; includes the image "
        "encoder's weights",
    )
    export.add_argument(
        "--web",
        action="store_true",
        help="write a static page that captions in the browser, instead of a model; needs a model with ONNX "
        "graphs, such as the default (docs/browser.md)",
    )
    export.add_argument(
        "--onnxruntime-web",
        metavar="FOLDER",
        help="with --web: use this unpacked npm package (default: download it with npm)",
    )
    export.set_defaults(run=_export)

    push = commands.add_parser(
        "push", help="upload a model with a generated card to the Hub, or write it to a folder"
    )
    push.add_argument("model", help="'default', a folder or a Hub id")
    push.add_argument("target", help="Hub id (owner/name), or a folder (./name)")
    push.add_argument(
        "--private", action="store_true", default=None, help="make a new Hub repository private"
    )
    push.add_argument(
        "--evaluation", help="add the figures of this JSON file, printed by 'ddcap evaluate --json'"
    )
    push.add_argument("--licence", help="name this licence on the card, for example mit")
    push.add_argument("--trained-on", help="describe the training data on the card, in one line")
    push.set_defaults(run=_push)

    convert = commands.add_parser(
        "convert", help="convert a checkpoint of the authors' release into a model folder"
    )
    convert.add_argument("checkpoint", help="released .pt file")
    convert.add_argument("output", help="folder to write")
    convert.add_argument(
        "--encoder",
        default="openai/clip-vit-base-patch16",
        help="use this CLIP, a folder or Hub id (default: openai/clip-vit-base-patch16)",
    )
    convert.add_argument(
        "--revision", help="use this branch, tag or commit of a CLIP from the Hub (default: newest)"
    )
    convert.add_argument("--tokenizer", help="load GPT-2's tokenizer from this folder or Hub id")
    convert.add_argument(
        "--heads", type=int, help="set the number of attention heads (default: width / 64, as in GPT-2)"
    )
    convert.set_defaults(run=_convert)


def _changes(given: Sequence[str]) -> dict[str, Any]:
    """Parse settings written as name=value."""
    import yaml

    changes = {}
    for change in given:
        name, separator, value = change.partition("=")
        if not separator:
            raise DDCapError(f"{change!r} is not a setting; write setting=value, for example guidance=1.3")
        changes[name] = yaml.safe_load(value)
    return changes


def _export(options: argparse.Namespace) -> int:
    changes = _changes(options.decoding)
    if options.web:
        if options.onnx:
            raise DDCapError("--web: cannot be combined with --onnx; run one command for each")
        if options.dtype is not None:
            raise DDCapError(
                "--dtype: a page uses the weights of the model folder; export the model with --dtype first"
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
            raise DDCapError("--dtype bfloat16: does not work with --onnx; use int8, float16 or float32")
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
    from ddcap.model.convert import convert

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
