"""The chart of `experiments.analysis`: loss by share unknown, errors by commitment, CIDEr by operations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcap.files import replacing
from experiments.figures import OURS, SMALL, TWIN, WIDTH, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIGHT = "#8fb8d4"
_LOSSES = {
    "g, random": ("diffusion, random order", OURS, "-"),
    "g, left_to_right": ("diffusion, left to right", _LIGHT, "-"),
    "g, best_first": ("diffusion, best-first", OURS, ":"),
    "twin": ("autoregressive", TWIN, "-"),
}
_GROUPS = {
    "g": ("diffusion, 1 to 5 candidates", OURS, "-", "o"),
    "g, no guidance": ("the same without guidance", _LIGHT, "-", "o"),
    "g, few steps, distinct": ("3 to 8 steps, distinct", OURS, ":", "s"),
    "twin": ("autoregressive, 1 to 5 beams", TWIN, "-", "o"),
}


def draw_why(results: dict[str, Any]) -> Figure:
    """Three panels, with 95 % intervals over images.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    figure = new_figure(WIDTH, 10.5)
    loss, errors, compute = figure.subplots(3, 1)
    _draw_loss(loss, results["loss"])
    _draw_errors(errors, results["commitment"])
    _draw_compute(compute, results["compute"])
    errors.set_ylim(0, 108)
    for axes, place in ((loss, "lower center"), (errors, "upper left"), (compute, "upper right")):
        axes.legend(fontsize=SMALL, frameon=False, loc=place)
        axes.tick_params(axis="x", labelsize=SMALL)
        plain(axes)
    return figure


def save_chart(results: dict[str, Any], folder: str | Path) -> Path:
    """Write `why.png`; returns its path."""
    path = Path(folder) / "why.png"
    with replacing(path) as temporary:
        draw_why(results).savefig(temporary, dpi=130, format="png")
    return path


def _draw_loss(axes: Axes, loss: dict[str, Any]) -> None:
    for name, (label, colour, style) in _LOSSES.items():
        points = [point for point in loss["by_share"][name] if point["mean"] is not None]
        x = [100 * sum(point["unknown"]) / 2 for point in points]
        _line(axes, x, points, label, colour, style)
    axes.set_xlim(100, 0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens still unknown, %")
    axes.set_ylabel("nats a token")
    axes.set_title("loss of human captions, word by word", fontsize=10)


def _draw_errors(axes: Axes, commitment: dict[str, Any]) -> None:
    for row, name, colour in (("g", "diffusion", OURS), ("twin", "autoregressive", TWIN)):
        for key, label, style in (("unsupported", "in no human caption", "-"), ("again", "said before", ":")):
            found = [(tenth, one[key]) for tenth, one in enumerate(commitment[row]["tenths"])]
            found = [(tenth, one) for tenth, one in found if one["mean"] is not None]
            scaled = [
                {"mean": 100 * one["mean"], "interval_95": [100 * end for end in one["interval_95"]]}
                for _, one in found
            ]
            _line(axes, [10 * tenth + 5 for tenth, _ in found], scaled, f"{name}: {label}", colour, style)
    axes.set_xlim(0, 100)
    axes.set_xlabel("tokens committed before, %")
    axes.set_ylabel("content words, %")
    axes.set_title("errors by order of commitment", fontsize=10)


def _draw_compute(axes: Axes, compute: dict[str, Any]) -> None:
    for name, (label, colour, style, marker) in _GROUPS.items():
        points = [
            {"mean": point["CIDEr"], "interval_95": point["interval_95"], "x": point["operations"] / 1e9}
            for point in compute["groups"][name]
        ]
        _line(axes, [point["x"] for point in points], points, label, colour, style, marker)
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("operations to decode an image, 10\N{SUPERSCRIPT NINE}")
    axes.set_ylabel("CIDEr on val")
    axes.set_title("CIDEr against compute", fontsize=10)


def _line(
    axes: Axes, x: list[float], points: list[Any], label: str, colour: str, style: str, marker: str = "o"
) -> None:
    means = [point["mean"] for point in points]
    axes.plot(x, means, color=colour, linestyle=style, marker=marker, markersize=3, label=label)
    low, high = ([point["interval_95"][end] for point in points] for end in (0, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
