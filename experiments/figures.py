"""Style that all charts share: colours, and figures without ornament."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddcap.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, TWIN, PAPER = "#2a6f97", "#e07a5f", "#b8b8b8"
WIDTH = 7.4  # inches: as wide as the text of the documents, so that letters keep their size
SMALL = 9.0  # points, of the smallest letters


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing charts", "report") from None
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def plain(axes: Axes) -> None:
    """Axes without a box."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", labelsize=SMALL)
