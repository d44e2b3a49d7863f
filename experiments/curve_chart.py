"""The chart of learning curves: CIDEr against epochs, a panel for each share of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.figures import OURS, SMALL, TWIN, WIDTH, new_figure, plain
from experiments.markdown import mean_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"g": "diffusion, row g", "twin": "autoregressive model"}
_COLOURS = {"g": OURS, "twin": TWIN}


def draw_curves(results: dict[str, Any]) -> Figure:
    """CIDEr on val above, loss a token below; a thin line a seed, the mean over seeds thick."""
    curves = results["curves"]
    figure = new_figure(WIDTH * max(len(curves), 2) / 3, 5.2)
    panels = figure.subplots(2, len(curves), squeeze=False, sharex="col", sharey="row")
    longest = max(
        point["epoch"]
        for content in curves.values()
        for seeds in content["rows"].values()
        for seed in seeds.values()
        for point in seed["points"]
    )
    for column, (share, content) in enumerate(curves.items()):
        for row, key in enumerate(("CIDEr", "loss")):
            _draw_panel(panels[row][column], content["rows"], key, longest)
        panels[0][column].set_title(f"{float(share):.0%} of the images", fontsize=10)
        panels[1][column].set_xlabel("epochs")
    panels[0][0].set_ylabel("CIDEr on val")
    panels[1][0].set_ylabel("loss a token, on val")
    panels[0][0].legend(fontsize=SMALL, frameon=False)
    return figure


def _draw_panel(axes: Axes, rows: dict[str, Any], key: str, longest: float) -> None:
    for name, colour in _COLOURS.items():
        of_seeds = [seed["points"] for seed in rows.get(name, {}).values()]
        for points in of_seeds:
            x = [point["epoch"] for point in points]
            axes.plot(x, [point[key] for point in points], color=colour, linewidth=0.8, alpha=0.5)
        if of_seeds:
            means = mean_points(of_seeds, key)
            x = [point["epoch"] for point in of_seeds[0][: len(means)]]
            axes.plot(x, means, color=colour, marker="o", markersize=4, label=_LABELS[name])
    axes.set_xscale("log")
    ticks = [tick for tick in (1, 2.5, 5, 10, 20, 40, 80, 160, 320) if tick <= longest]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=SMALL)
    axes.minorticks_off()
    if key == "loss":
        axes.set_ylim(1.5, 6)
    plain(axes)
