"""Arguments that several commands share, and progress bars on standard error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ddcap.errors import DDCapError

if TYPE_CHECKING:
    from ddcap.captioner import Captioner


def progress_bar(items: Iterable[Any], total: int, what: str = "images") -> Iterable[Any]:
    """Show a bar on standard error, if that is a terminal and there are at least 8 items."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if total < 8 or not console.is_terminal:
        return items
    return track(items, description=what, total=total, console=console, transient=True)


def tell(message: str) -> None:
    """Print a line on standard error, line breaks of file names escaped."""
    line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message)
    print(line, file=sys.stderr, flush=True)


def model_arguments() -> argparse.ArgumentParser:
    """--model, --device, --precision, --runtime, --cuda-graphs, --seed."""
    model = argparse.ArgumentParser(add_help=False)
    add_model(model)
    add_precision(model)
    model.add_argument("--seed", type=int, default=0, help="seed the random numbers of sampling (default: 0)")
    return model


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and --device."""
    parser.add_argument(
        "--model",
        default="default",
        help="load this model: 'default', a folder or a Hub id (default: default)",
    )
    parser.add_argument("--device", default="cpu", help="run on this device, for example cuda (default: cpu)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--precision, --runtime and --cuda-graphs."""
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16", "int8"],
        default="auto",
        help="compute in this precision; int8 needs ONNX, bfloat16 needs PyTorch; auto takes the fastest "
        "that the machine supports (default: auto)",
    )
    parser.add_argument(
        "--runtime",
        choices=["auto", "onnx", "torch"],
        default="auto",
        help="run the model with ONNX Runtime or PyTorch; onnx needs a model with ONNX graphs, such as the "
        "default; auto takes onnx if it can (default: auto)",
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="on a GPU, record the kernels of each step and replay them: faster where few images are "
        "captioned at a time",
    )


def load_captioner(options: argparse.Namespace) -> Captioner:
    """The model that `model_arguments` name."""
    from ddcap.captioner import Captioner

    return Captioner.from_pretrained(*named_model(options))


def named_model(options: argparse.Namespace) -> tuple[Any, ...]:
    """The model that `model_arguments` name, as `Captioner.from_pretrained` takes it."""
    return options.model, options.device, options.precision, options.runtime, options.cuda_graphs


def decoding_arguments() -> argparse.ArgumentParser:
    """Add the options of decoding; `decoding_changes` reads them."""
    decoding = argparse.ArgumentParser(add_help=False)
    group = decoding.add_argument_group("decoding", "The model stores a default for each of these settings.")
    group.add_argument(
        "--method",
        choices=["best_first", "ancestral", "left_to_right"],
        help="decode best-first, by the ordinary reverse process (ancestral), or, for an autoregressive "
        "model, left to right",
    )
    group.add_argument(
        "--preset",
        choices=["fast", "best"],
        help="choose several settings at once, for speed (fast) or quality (best)",
    )
    group.add_argument("--steps", type=int, help="take this many denoising steps; fewer are faster")
    group.add_argument(
        "--guidance",
        type=float,
        help="set the guidance scale, s in equation 8; above 1 follows the image more closely",
    )
    group.add_argument(
        "--length",
        type=_length,
        help="write exactly this many tokens, end token included; 'predicted' lets the model choose",
    )
    group.add_argument(
        "--candidates",
        type=int,
        help="decode this many captions per image, each of another length, and keep the likeliest; with "
        "--length, use the lengths nearest to it",
    )
    group.add_argument(
        "--prune",
        type=_prune,
        metavar="NUMBERS",
        help="let so many candidates go on after the first step, the second, and so on: '4,2'; 'none' drops "
        "none",
    )
    group.add_argument(
        "--focus",
        type=int,
        metavar="NUMBER",
        help="predict so many of a caption's MASKs in each step, and those beside new words; 0 predicts all",
    )
    group.add_argument(
        "--temperature", type=float, help="sample at this temperature; 0 takes the likeliest token"
    )
    decoding.add_argument(
        "--concepts",
        help="replace the concepts that the model sees: 'cat, window'; or change them: '+cat, -dog'",
    )
    group.add_argument("--beams", type=int, help="set the beam width of an autoregressive model")
    group.add_argument(
        "--block",
        type=int,
        help="fill blocks of this many tokens from left to right, best-first within a block",
    )
    group.add_argument(
        "--absence",
        type=float,
        help="weigh what speaks against things that the tagger does not see; 0 is off",
    )
    group.add_argument(
        "--persons",
        type=float,
        help="weigh what a detector says for or against persons; 0 is off",
    )
    group.add_argument(
        "--judge-weight",
        type=float,
        help="give the judge of a model that has one this share in the choice among candidates, from 0 to 1",
    )
    group.add_argument(
        "--edit-rounds",
        type=int,
        help="write the words that the judge finds least likely again, so many times",
    )
    return decoding


def word_arguments(*, everywhere: bool = True) -> argparse.ArgumentParser:
    """Constraints on words, for `word_changes`. Without `everywhere`, none on the position of words."""
    words = argparse.ArgumentParser(add_help=False)
    group = words.add_argument_group(
        "words", "Every caption obeys these constraints. If none can, the command fails with one line."
    )
    if everywhere:
        group.add_argument(
            "--include",
            action="append",
            metavar="PHRASE",
            help="put these words into the caption, anywhere; repeat the option for more",
        )
        group.add_argument("--prefix", metavar="PHRASE", help="begin the caption with these words")
        group.add_argument("--suffix", metavar="PHRASE", help="end the caption with these words")
    group.add_argument(
        "--ban",
        action="append",
        metavar="PHRASES",
        help="ban words and phrases, separated by commas: 'man,a picture of'; repeat the option for more",
    )
    group.add_argument("--ban-file", metavar="FILE", help="ban the words and phrases in a file, one per line")
    group.add_argument(
        "--neutral",
        nargs="?",
        const=True,
        metavar="FILE",
        help="avoid gender: write person, people, child; FILE replaces the list of words, see "
        "src/ddcap/decoding/neutral.txt",
    )
    group.add_argument("--min-words", type=int, metavar="N", help="write at least N words")
    group.add_argument(
        "--max-chars", type=int, metavar="N", help="write at most N characters, for example 125 for alt text"
    )
    return words


def word_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The constraints on words, as keyword arguments of a captioner."""
    from ddcap.decoding.constraints import banned_in

    names = ("include", "prefix", "suffix", "neutral", "min_words", "max_chars")
    changes = {name: getattr(options, name, None) for name in names}
    banned = [phrase for phrases in options.ban or () for phrase in phrases.split(",")]
    if options.ban_file is not None:
        banned += banned_in(options.ban_file)
    changes["ban"] = tuple(banned) or None
    return {name: value for name, value in changes.items() if value is not None}


def share_argument(text: str) -> float:
    """A number from 0 to 1."""
    from ddcap.values import as_share

    try:
        return as_share("", text)
    except DDCapError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1") from None


def lengths_argument(text: str) -> list[int]:
    """Lengths from a text like 6-12 or 6,8,12."""
    try:
        first, dash, last = text.partition("-")
        lengths = [*range(int(first), int(last) + 1)] if dash else [int(one) for one in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of lengths; write 6-12 or 6,8,12")
    return lengths


def output_arguments() -> argparse.ArgumentParser:
    """--trace, --format."""
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--trace", action="store_true", help="show the tokens that each step commits")
    output.add_argument(
        "--format",
        choices=["table", "jsonl"],
        default="table",
        help="print a table, or one JSON object per line (default: table)",
    )
    return output


def decoding_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The decoding settings of the command line; None for those not given."""
    names = [
        *("preset", "method", "steps", "guidance", "length", "candidates", "temperature", "beams"),
        *("prune", "focus", "block", "absence", "persons", "judge_weight", "edit_rounds"),
    ]
    return {name: getattr(options, name) for name in names}


def _prune(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} does not say how many candidates go on; write numbers such as '4,2', or 'none'"
        ) from None


def _length(text: str) -> int | str:
    if text == "predicted":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a length; write a number of tokens or 'predicted'"
        ) from None
