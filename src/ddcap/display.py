"""Captions on a terminal: tables, and traces that show word by word how a caption came about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ddcap.decoding.caption import Caption, Concept, ImageResult, PersonsSeen
from ddcap.decoding.trace import Trace

if TYPE_CHECKING:
    from ddcap.decoding.rewriting import Rewriting
    from ddcap.decoding.scoring import CaptionEvidence

_BLANK = "·"


def confidence_style(probability: float) -> str:
    """Colour of a token by its probability: red where the model guessed, green where it was sure."""
    for limit, style in ((0.25, "red"), (0.5, "dark_orange"), (0.75, "yellow"), (0.9, "green3")):
        if probability < limit:
            return style
    return "bold green"


def caption_table(results: list[ImageResult], min_sure: float | None = None) -> Table:
    """One row per caption: image, caption coloured by confidence, how sure the model was.

    A result without captions has no row: its error belongs on standard error. Doubtful words have a question
    mark. Of an image of a kind that the model does not know, the caption is a guess; under `min_sure` there
    is none.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("image", overflow="fold", style="cyan")
    table.add_column("caption", overflow="fold")
    table.add_column("sure", justify="right")
    for result in results:
        if result.error is not None:
            continue
        why = result.withheld(min_sure)
        for number, caption in enumerate(result.captions):
            name = str(result.source) if number == 0 else ""
            if why is not None:
                table.add_row(name, Text(f"({why})", style="dim"), "")
            elif caption.why_not is not None:
                table.add_row(name, Text(f"a guess: {caption.text}", style="dim"), "not sure")
            else:
                sure = caption.sure if caption.sure is not None else math.exp(caption.score)
                table.add_row(name, coloured(caption), f"{sure:.0%}")
    return table


def fewer_captions(result: ImageResult) -> str:
    """Say why an image has fewer captions than were asked for."""
    return (
        f"{result.source!s}: {len(result.captions)} of {result.asked} captions: no other one fits what was "
        "asked; require and ban fewer words, or ask for fewer captions"
    )


def concept_line(name: str, concepts: Sequence[Concept], persons: PersonsSeen | None = None) -> Text:
    """An image's concepts, each in the colour of its confidence, and who is there."""
    text = Text(f"{name}  ", style="cyan")
    for concept in concepts:
        text.append(f"{concept.word} ", style=confidence_style(concept.confidence))
        text.append(f"{concept.confidence:.2f}  ", style="dim")
    if persons is not None:
        text.append(f"persons: {persons.text} ", style=confidence_style(persons.probability))
        text.append(f"{persons.probability:.2f}", style="dim")
    return text


def evidence_lines(text: str, evidence: CaptionEvidence) -> list[Text]:
    """A caption, how well it fits, and a bar for what the image says for each word."""
    lines = [Text.assemble((f"{evidence.fit:+.2f}", _gain_style(evidence.fit)), "  ", (text, "bold"))]
    longest = max(len(one.word) for one in evidence.words)
    for one in evidence.words:
        bar = "█" * min(30, max(0, round(4 * abs(one.gain))))
        style = _gain_style(one.gain)
        lines.append(Text.assemble(f"  {one.word:>{longest}} ", (f"{one.gain:+6.2f} ", style), (bar, style)))
    return lines


def _gain_style(gain: float) -> str:
    for limit, style in ((-0.5, "red"), (0.0, "dark_orange"), (0.5, "yellow"), (1.5, "green3")):
        if gain < limit:
            return style
    return "bold green"


def rewriting_lines(result: Rewriting) -> list[Text]:
    """A caption before, with its doubted words struck out, and after."""
    before = Text("before  ", style="dim")
    for number, one in enumerate(result.before.words):
        before.append(f"{one.word} ", style="strike red" if number in result.doubted else "")
    after = Text.assemble(("after   ", "dim"), result.text)
    fits = f"fit {result.before.fit:+.2f} before, {result.evidence.fit:+.2f} after"
    if not result.doubted:
        fits = "no word is doubtful"
    elif result.after is None:
        fits = "no other words fit better"
    return [before, after, Text(fits, style="dim")]


def coloured(caption: Caption) -> Text:
    """The text, every token in the colour of its confidence, doubtful words with a question mark."""
    text, word = Text(), ""
    for piece, probability in zip(caption.tokens, caption.confidences, strict=True):
        if (piece.startswith(" ") or piece == "") and word.strip() in caption.doubtful:
            text.append("?", style="bold red")
        word = piece if piece.startswith(" ") else word + piece
        text.append(piece, style=confidence_style(probability))
    text.plain = text.plain.lstrip() if text.plain.startswith(" ") else text.plain
    return text


def print_trace(console: Console, name: str, caption: Caption) -> None:
    """Print how `caption` came about: one line per step, its words highlighted, with their probabilities."""
    console.print(
        Panel(Group(*_trace_lines(caption.trace), Text(), coloured(caption)), title=name, expand=False)
    )


def _trace_lines(trace: Trace) -> list[Text]:
    columns = [
        max(len(frame[position]) for frame in trace.frames) for position in range(len(trace.frames[0]))
    ]
    steps = sorted({event.step for event in trace.events})
    lines = []
    for frame, step in zip(trace.frames, steps, strict=True):
        events = [event for event in trace.events if event.step == step]
        fresh = {event.position: event.probability for event in events}
        line = Text()
        line.append(f"{step + 1:>3} ", style="dim")
        for position, piece in enumerate(frame):
            shown, style = _piece(piece, fresh.get(position))
            word = shown.lstrip()
            line.append(" " * (len(shown) - len(word)))
            line.append(word, style=style)
            line.append(" " * (max(columns[position], 2) - len(shown)))
        line.append("  ")
        for event in events:
            label = event.token.strip() or "end"
            line.append(f" {label} {event.probability:.0%}", style=confidence_style(event.probability))
        lines.append(line)
    return lines


def _piece(piece: str, fresh: float | None) -> tuple[str, str]:
    if piece.strip() == "▁":
        return f" {_BLANK}", "dim"
    shown = piece or " ■"  # the end token
    return shown, "" if fresh is None else f"reverse {confidence_style(fresh)}"
