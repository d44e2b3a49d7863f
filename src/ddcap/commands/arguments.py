"""Arguments that several commands share, and progress bars on standard error."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddcap.captioner import Captioner


def progress_bar(items: Iterable[Any], total: int, what: str = "images") -> Iterable[Any]:
    """A bar on standard error where that is a terminal and there is something to wait for."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if total < 8 or not console.is_terminal:
        return items
    return track(items, description=what, total=total, console=console, transient=True)


def model_arguments() -> argparse.ArgumentParser:
    """--model, --device, --precision, --runtime, --seed."""
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default="default", help="'default', a folder or a Hub id")
    model.add_argument("--device", default="cpu", help="where to run, for instance cuda (default: cpu)")
    add_precision(model)
    model.add_argument("--seed", type=int, default=0, help="for decoding that draws (default: 0)")
    return model


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--precision and --runtime."""
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16", "int8"],
        default="auto",
        help="int8 is of ONNX graphs, bfloat16 of PyTorch; auto: the faster one that the machine has",
    )
    parser.add_argument(
        "--runtime",
        choices=["auto", "onnx", "torch"],
        default="auto",
        help="onnx needs no PyTorch, and a model with graphs, as the default is one; auto: onnx where it can",
    )


def load_captioner(options: argparse.Namespace) -> Captioner:
    """The model that `model_arguments` name."""
    from ddcap.captioner import Captioner

    return Captioner.from_pretrained(options.model, options.device, options.precision, options.runtime)


def decoding_arguments() -> argparse.ArgumentParser:
    """How captions are decoded; `decoding_changes` reads them."""
    decoding = argparse.ArgumentParser(add_help=False)
    group = decoding.add_argument_group("decoding", "each defaults to the model's own setting")
    group.add_argument(
        "--method",
        choices=["best_first", "ancestral", "left_to_right"],
        help="best-first, the normal reverse process, or (autoregressive models) left to right",
    )
    group.add_argument(
        "--preset", choices=["fast", "best"], help="several settings at once: less time, or better captions"
    )
    group.add_argument("--steps", type=int, help="denoising steps; fewer is faster")
    group.add_argument("--guidance", type=float, help="s of equation 8; over 1 follows the image more")
    group.add_argument(
        "--length",
        type=_length,
        help="exactly so many tokens, end token included, or 'predicted' from the picture",
    )
    group.add_argument(
        "--candidates",
        type=int,
        help="captions of so many lengths decoded for each picture; the likeliest wins. With --length, of "
        "the lengths nearest to it",
    )
    group.add_argument("--temperature", type=float, help="0 takes the likeliest token, 1 samples")
    decoding.add_argument(
        "--concepts",
        help="what the image shows, in place of what is seen: 'cat, window'; or changes to it: '+cat, -dog'",
    )
    group.add_argument("--beams", type=int, help="autoregressive models: captions followed at once")
    return decoding


def word_arguments(*, everywhere: bool = True) -> argparse.ArgumentParser:
    """What captions have to be like, for `word_changes`. Without `everywhere`, not where words stand."""
    words = argparse.ArgumentParser(add_help=False)
    group = words.add_argument_group("words", "every caption obeys; what cannot be is refused in one line")
    if everywhere:
        group.add_argument(
            "--include",
            action="append",
            metavar="PHRASE",
            help="words that stand in the caption, anywhere; can be given several times",
        )
        group.add_argument("--prefix", metavar="PHRASE", help="what the caption begins with")
        group.add_argument("--suffix", metavar="PHRASE", help="what the caption ends with")
    group.add_argument(
        "--ban",
        action="append",
        metavar="PHRASES",
        help="words and phrases that do not stand in the caption, between commas: 'man,a picture of'",
    )
    group.add_argument("--ban-file", metavar="FILE", help="the same from a file, one a line")
    group.add_argument(
        "--neutral",
        nargs="?",
        const=True,
        metavar="FILE",
        help="people are person, people, child; FILE: a list of your own, see decoding/neutral.txt",
    )
    group.add_argument("--min-words", type=int, metavar="N", help="at least so many words")
    group.add_argument(
        "--max-chars", type=int, metavar="N", help="at most so many characters; 125 for alt text"
    )
    return words


def word_changes(options: argparse.Namespace) -> dict[str, Any]:
    """What captions have to be like, as keyword arguments of a captioner."""
    from ddcap.decoding.constraints import banned_in

    names = ("include", "prefix", "suffix", "neutral", "min_words", "max_chars")
    changes = {name: getattr(options, name, None) for name in names}
    banned = [phrase for phrases in options.ban or () for phrase in phrases.split(",")]
    if options.ban_file is not None:
        banned += banned_in(options.ban_file)
    changes["ban"] = tuple(banned) or None
    return {name: value for name, value in changes.items() if value is not None}


def lengths_argument(text: str) -> list[int]:
    """Lengths from a text like 6-12 or 6,8,12."""
    try:
        first, dash, last = text.partition("-")
        lengths = [*range(int(first), int(last) + 1)] if dash else [int(one) for one in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths:
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 6-12 nor like 6,8,12")
    return lengths


def output_arguments() -> argparse.ArgumentParser:
    """--trace, --format."""
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--trace", action="store_true", help="show what was committed when")
    output.add_argument(
        "--format", choices=["table", "jsonl"], default="table", help="for people or for programs"
    )
    return output


def decoding_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The decoding settings that the command line names; None where it is silent."""
    names = ("preset", "method", "steps", "guidance", "length", "candidates", "temperature", "beams")
    return {name: getattr(options, name) for name in names}


def _length(text: str) -> int | str:
    if text == "predicted":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tokens nor 'predicted'") from None
