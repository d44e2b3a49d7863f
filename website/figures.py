"""The images of docs/paper_explained.md, docs/architecture.md and README.md.

    python -m website.figures                      # all of them, into docs/images
    python -m website.figures some_folder --photo photo.jpg

Captions, probabilities and noise are those of the default model on a photograph; nothing is drawn by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ddcap import Captioner
from ddcap.decoding.generate import nearest_lengths
from ddcap.files import replacing, write_text
from ddcap.model.attention_mask import self_attn_mask
from website.appearing import caption_appears
from website.decoded import BLANK, Decoded, Guess
from website.diagram import draw_diagram, mermaid_of

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "examples" / "photos" / "coffee.jpg"
INK, FAINT, GRID, TEAL, RED = "#1f2328", "#8b949e", "#d0d7de", "#0b7285", "#c92a2a"


def new_figure(width: float, height: float) -> Figure:
    """Inches, on white paper, without pyplot's global state."""
    matplotlib.rcParams.update({"font.size": 10, "text.color": INK, "axes.edgecolor": GRID})
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def cell(axes: Axes, column: float, row: float, text: str, *, fill: str, ink: str, edge: str = GRID) -> None:
    """A word in a box of one column and one row."""
    axes.add_patch(
        FancyBboxPatch(
            (column + 0.06, row + 0.14),
            0.88,
            0.72,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=fill,
            edgecolor=edge,
            linewidth=1.6 if edge == TEAL else 0.8,
        )
    )
    size = 9.5 if len(text) < 8 else 8
    axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", color=ink, fontsize=size)


def empty_axes(axes: Axes, columns: float, rows: float) -> None:
    """Cells from the upper left corner, without lines around them."""
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def forward_process(decoded: Decoded) -> Figure:
    """The caption at six times of the forward process, and the probabilities behind it."""
    schedule = decoded.model.schedule
    times = [0, 4, 8, 12, 16, 19]
    clean = decoded.words(decoded.result.tokens[0])
    figure = new_figure(9.6, 5.6)
    words, curves = figure.subplots(2, 1, height_ratios=[3, 2])
    empty_axes(words, len(clean) + 1, len(times) + 1)
    for number, (name, row) in enumerate(
        [("clean", clean), *zip([f"t = {t}" for t in times], decoded.noised(times, seed=5), strict=True)]
    ):
        words.text(0.9, number + 0.5, name, ha="right", va="center", color=INK)
        for column, (word, original) in enumerate(zip(row, clean, strict=True)):
            if word == BLANK:
                cell(words, column + 1, number, BLANK, fill="#e9ecef", ink=FAINT)
            elif word != original:
                cell(words, column + 1, number, word, fill="#ffe3e3", ink=RED)
            else:
                cell(words, column + 1, number, word, fill="white", ink=INK)
    t = range(schedule.steps)
    kept = schedule.cumulative_keep[:-1]
    masked = schedule.cumulative_mask[:-1]
    for values, name, colour in (
        (kept, "kept", INK),
        (masked, "MASK", FAINT),
        (1 - kept - masked, "replaced by another word", RED),
    ):
        curves.plot(t, values, color=colour, linewidth=2, marker="o", markersize=3, label=name)
    curves.set(xlabel="timestep t", ylabel="probability, from the start to t", ylim=(-0.03, 1.03))
    curves.set_xticks(times)
    curves.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False, loc="center left")
    return figure


def concentrated_mask(decoded: Decoded) -> Figure:
    """Draw who attends to whom, half-way through: without the concentrated mask and with it."""
    tokens = decoded.result.history[decoded.steps // 2]
    words, is_mask = decoded.words(tokens[0]), tokens == decoded.model.mask_id
    figure = new_figure(9.6, 4.9)
    for axes, concentrated in zip(figure.subplots(1, 2), (False, True), strict=True):
        allowed = self_attn_mask(is_mask, torch.zeros_like(is_mask), concentrated=concentrated)[0]
        axes.imshow(allowed.numpy(), cmap=matplotlib.colors.ListedColormap(["#f1f3f5", TEAL]), vmin=0, vmax=1)
        places = range(len(words))
        axes.set_xticks(places, words, rotation=60, ha="right")
        axes.set_yticks(places, words)
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            for label in labels:
                label.set_color(FAINT if label.get_text() == BLANK else INK)
        axes.set_xticks([place - 0.5 for place in places], minor=True)
        axes.set_yticks([place - 0.5 for place in places], minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.set(xlabel="attends to", ylabel="position" if not concentrated else "")
        share = float(allowed.float().mean())
        title = "concentrated mask" if concentrated else "no mask"
        axes.set_title(f"{title}: {share:.0%} of the pairs", fontsize=11)
    return figure


def best_first(decoded: Decoded) -> Figure:
    """Every step's guesses: how sure, and which of them was committed."""
    rows = decoded.guesses()
    columns = len(rows[0])
    figure = new_figure(1.05 * (columns + 1), 0.46 * (len(rows) + 1))
    axes = figure.subplots()
    empty_axes(axes, columns + 1, len(rows))
    shades = matplotlib.colormaps["YlGnBu"]
    for number, row in enumerate(rows):
        axes.text(0.9, number + 0.52, f"step {number + 1}", ha="right", va="center", color=INK)
        before: list[Guess] = rows[number - 1] if number else []
        for column, guess in enumerate(row):
            if before and before[column].committed:
                cell(axes, column + 1, number, guess.word, fill="white", ink=INK)
                continue
            fill = matplotlib.colors.to_hex(shades(0.05 + 0.5 * guess.probability))
            text = f"{guess.word} {guess.probability:.0%}"
            edge = TEAL if guess.committed else GRID
            cell(
                axes,
                column + 1,
                number,
                text,
                fill=fill,
                ink=INK if guess.committed else "#57606a",
                edge=edge,
            )
    return figure


def lengths(decoded: Decoded) -> Figure:
    """One best-first caption of each length, and how likely the model finds it."""
    found = decoded.by_length(list(range(6, 17)))
    figure = new_figure(9.6, 3.9)
    axes = figure.subplots()
    settings = decoded.captioner.decoding
    assert isinstance(settings.length, int)  # the default decodes lengths around a fixed one
    tried = nearest_lengths(
        settings.length, settings.candidates, decoded.captioner.model.config.model.max_length
    )
    for row, (length, text, score) in enumerate(found):
        is_own = text == decoded.caption.text and length == decoded.caption.length
        axes.barh(row, score, color=TEAL if is_own else "#99c9d1" if length in tried else GRID, height=0.7)
        axes.text(0.02, row, text, va="center", fontsize=9, fontweight="bold" if is_own else "normal")
    axes.set_yticks(range(len(found)), [f"{length} tokens" for length, _, _ in found])
    axes.set_xlim(min(score for *_, score in found) * 1.05, 1.6)
    axes.set_xticks([value for value in axes.get_xticks() if value <= 0])
    axes.set_xlim(min(score for *_, score in found) * 1.05, 1.6)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mean log-probability of a token", loc="left")
    return figure


def guidance(decoded: Decoded) -> Figure:
    """The first word for something seen, when it was chosen: without the image, with it, and guided."""
    seen = {concept.word for concept in decoded.captioner.concepts(decoded.photo)}
    step, position = decoded.committed_at(seen)
    scales = [0.0, 1.0, 1.17, 2.0]
    names = ["without the image (s = 0)", "with the image (s = 1)", "guided, s = 1.17", "guided, s = 2"]
    candidates, chances = decoded.guided(step, position, scales, 3)
    figure = new_figure(9.6, 3.4)
    axes = figure.subplots()
    for number, (name, row, colour) in enumerate(
        zip(names, chances, (GRID, "#99c9d1", TEAL, "#064b57"), strict=True)
    ):
        offsets = [place + (number - 1.5) * 0.2 for place in range(len(candidates))]
        axes.bar(offsets, row, width=0.19, color=colour, label=name)
    axes.set_xticks(range(len(candidates)), candidates)
    axes.set_ylabel(f"probability, step {step + 1}, word {position + 1}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


_SAVED: dict[str, Any] = {
    "dpi": 130,
    "bbox_inches": "tight",
    "pad_inches": 0.12,
    "metadata": {"Software": None},
}
FIGURES: dict[str, Callable[[Decoded], Figure]] = {
    "paper_forward_process": forward_process,
    "paper_concentrated_mask": concentrated_mask,
    "paper_best_first": best_first,
    "paper_lengths": lengths,
    "paper_guidance": guidance,
}


def main() -> None:
    """Caption, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    decoded = Decoded(
        Captioner.from_pretrained(runtime="torch", precision="float32"),
        options.photo,
    )
    figures = {name: draw(decoded) for name, draw in FIGURES.items()}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    figures["architecture"] = draw_diagram(mermaid_of(page))
    for name, figure in figures.items():
        with replacing(options.folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", **_SAVED)
    svg = caption_appears(options.photo, Captioner.from_pretrained()(options.photo)[0])
    write_text(options.folder / "caption_appears.svg", svg)
    print(decoded.caption.text)


if __name__ == "__main__":
    main()
