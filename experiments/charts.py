"""The charts of an ablation: Table 1 beside the paper's, the sweeps, infilling, the trainings."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcap.files import replacing
from experiments.curve_chart import draw_curves
from experiments.figures import OURS, PAPER, SMALL, TWIN, WIDTH, new_figure, plain
from experiments.markdown import NAMES, paper_cider
from experiments.paper import TABLE_1, TWIN_CIDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {
    "guidance": "guidance s",
    "steps": "decoding steps",
    "length": "caption length",
    "replacement_mass": "replacement mass",
    "drop_probability": "image dropped, p",
}


def draw_charts(results: dict[str, Any]) -> dict[str, Figure]:
    """Name to figure.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    charts: dict[str, tuple[bool, Callable[[dict[str, Any]], Figure]]] = {
        "curves": (bool(results.get("curves")), draw_curves),
        "table1": (bool(results["rows"]), _draw_table_1),
        "sweeps": (bool(results["sweeps"]), _draw_sweeps),
        "infilling": (bool(results["infilling"]), _draw_infilling),
        "trainings": (bool(results.get("trainings")), _draw_trainings),
    }
    return {name: draw(results) for name, (wanted, draw) in charts.items() if wanted}


def save_charts(results: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write every chart as PNG; returns the files."""
    paths = []
    for name, figure in draw_charts(results).items():
        paths.append(Path(folder) / f"{name}.png")
        with replacing(paths[-1]) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
    return paths


def to_svg(figure: Figure) -> str:
    """A figure as SVG text that can stand in a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _short(name: str) -> str:
    """A row's name on several lines, as wide as its bar."""
    return re.sub("twin|autoregressive", "auto-\nregressive", name).replace(", ", "\n")


def _draw_table_1(results: dict[str, Any]) -> Figure:
    rows = results["rows"]
    # the paper's rows and the autoregressive model; a plan's own rows are in the tables
    names = [name for name in rows if paper_cider(name) is not None] or list(rows)
    figure = new_figure(WIDTH, 6.4)
    ours, paper = figure.subplots(2, 1)
    places = range(len(names))
    means = [rows[name]["mean"]["CIDEr"] for name in names]
    low = [mean - rows[name]["interval_95"][0] for name, mean in zip(names, means, strict=True)]
    high = [rows[name]["interval_95"][1] - mean for name, mean in zip(names, means, strict=True)]
    colours = [TWIN if name.startswith("twin") else OURS for name in names]
    ours.bar(places, means, color=colours, yerr=[low, high], ecolor="#444444", capsize=3, width=0.7)
    human = (results.get("human") or {}).get("metrics", {}).get("CIDEr")
    if human:
        ours.axhline(human, color="#777777", linestyle=":", linewidth=1)
        ours.text(0, human, " a human caption", va="bottom", ha="left", fontsize=SMALL, color="#555555")
    ours.set_title(f"here: {results['test_images']} images, 95 % intervals", fontsize=10)
    known = {**{name: row["CIDEr"] for name, row in TABLE_1.items()}, "twin": TWIN_CIDER}
    published = [name for name in names if name in known]
    paper.bar(
        range(len(published)),
        [known[name] for name in published],
        color=[TWIN if name == "twin" else PAPER for name in published],
        width=0.7,
    )
    paper.set_title("the paper: COCO validation", fontsize=10)
    for axes, shown in ((ours, names), (paper, published)):
        labels = [_short(NAMES.get(name, name) if axes is ours else name) for name in shown]
        axes.set_xticks(range(len(shown)), labels, fontsize=SMALL)
        axes.set_ylabel("CIDEr")
        plain(axes)
    return figure


def _draw_sweeps(results: dict[str, Any]) -> Figure:
    sweeps = {
        name: points
        for name, points in results["sweeps"].items()
        if any(_is_number(point["value"]) for point in points)
    }
    columns = 2 if len(sweeps) in (2, 4) else min(3, len(sweeps))
    rows = -(-len(sweeps) // columns)
    figure = new_figure(WIDTH if columns > 1 else WIDTH / 2, 2.6 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(sweeps) :]:
        axes.remove()
    panels = panels[: len(sweeps)]
    for axes, (name, points) in zip(panels, sweeps.items(), strict=True):
        numbers = [point for point in points if _is_number(point["value"])]
        x = [float(point["value"]) for point in numbers]
        axes.plot(x, [point["CIDEr"] for point in numbers], color=OURS, marker="o", markersize=4)
        axes.fill_between(
            x,
            [point["interval_95"][0] for point in numbers],
            [point["interval_95"][1] for point in numbers],
            color=OURS,
            alpha=0.15,
            linewidth=0,
        )
        styles = {"predicted": "-", "expected": "--", "true": ":"}
        for point in points:
            if point["value"] in styles:
                style = styles[point["value"]]
                axes.axhline(point["CIDEr"], color=TWIN, linestyle=style, linewidth=1.2, label=point["value"])
        if len(numbers) < len(points):
            axes.legend(fontsize=SMALL, frameon=False)
        axes.set_xlabel(_LABELS.get(name, name))
        axes.set_ylabel("CIDEr on val" if panels.index(axes) % columns == 0 else "")
        plain(axes)
    return figure


def _draw_infilling(results: dict[str, Any]) -> Figure:
    shares = list(results["infilling"])
    figure = new_figure(WIDTH, 3.4)
    titles = {"whole": "CIDEr, whole caption", "blanks": "CIDEr, blanks alone", "exact": "blanks exact, %"}
    systems = {"g": OURS, "twin": TWIN, "twin_beams": "#f2cc8f"}
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for number, (system, colour) in enumerate(systems.items()):
            scores = [results["infilling"][share][system][key] for share in shares]
            means = [score["mean"] for score in scores]
            ends = [
                [mean - score["interval_95"][0] for mean, score in zip(means, scores, strict=True)],
                [score["interval_95"][1] - mean for mean, score in zip(means, scores, strict=True)],
            ]
            places = [place + 0.26 * (number - 1) for place in range(len(shares))]
            label = NAMES.get(system, "diffusion, row g")
            axes.bar(places, means, 0.25, color=colour, yerr=ends, ecolor="#444444", capsize=2, label=label)
        axes.set_xticks(range(len(shares)), [f"{float(share):.0%}" for share in shares])
        axes.set_xlabel("words masked")
        axes.set_title(title, fontsize=10)
        plain(axes)
        if key == "blanks":
            figure.legend(
                *axes.get_legend_handles_labels(),
                loc="outside lower center",
                ncols=3,
                fontsize=SMALL,
                frameon=False,
            )
    return figure


def _draw_trainings(results: dict[str, Any]) -> Figure:
    """A line for each training but those of learning curves; the seeds of a row share their colour."""
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    apart = {
        f"{row}-{share}-seed{seed}"
        for share, content in results.get("curves", {}).items()
        for row, seeds in content["rows"].items()
        for seed in seeds
    }
    curves = {
        name: [(point["step"], point["CIDEr"]) for point in training["val"] if point["CIDEr"] is not None]
        for name, training in results["trainings"].items()
        if name not in apart or len(apart) == len(results["trainings"])
    }
    longest = max(map(len, curves.values()), default=0)
    colours: dict[str, str] = {}
    for name, curve in curves.items():
        if len(curve) < min(longest, 2):
            continue  # a point beside curves says nothing
        steps, scores = zip(*curve, strict=True)
        row = name.rpartition("-seed")[0]
        is_first = row not in colours
        colour = colours.setdefault(row, TWIN if row.startswith("twin") else f"C{len(colours) % 10}")
        label = NAMES.get(row, row) if is_first else None
        axes.plot(steps, scores, marker="o", markersize=3, label=label, color=colour, linewidth=1)
    axes.set_xlabel("training step")
    axes.set_ylabel("CIDEr on val")
    axes.legend(fontsize=SMALL, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain(axes)
    return figure


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
