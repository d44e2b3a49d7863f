"""The Mermaid diagram of docs/architecture.md as an image.

GitHub draws Mermaid itself. The site has no script for it, and shows the image.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCK = re.compile(r"```mermaid\n(.*?)```", re.S)
_NODE = re.compile(r"(\w+)(?:\[\"(.*?)\"\]|\(\[(.*?)\]\))")
# where the boxes stand: column, row
_PLACES = {
    "photo": (0, 0),
    "images": (1, 0),
    "encoders": (2, 0),
    "generate": (3, 0),
    "sampler": (4, 0),
    "scheduler": (3, 1),
    "denoiser": (4, 1),
    "finishing": (5, 0),
    "captioner": (5, 1),
    "loop": (1, 2),
    "batches": (2, 2),
    "loss": (3, 2),
    "state": (4, 2),
    "diffusion": (3, 3),
}
_INK, _EDGE, _FILL = "#1f2328", "#0b7285", "#e6f4f6"


def mermaid_of(page: str) -> str:
    """The diagram of a page of Markdown."""
    found = _BLOCK.search(page)
    if found is None:
        raise ValueError("the page has no Mermaid diagram")
    return found[1]


def with_image(page: str, image: str) -> str:
    """A page with its Mermaid diagram replaced by an image of it."""
    return _BLOCK.sub(f"![From a photograph to a caption, and from a caption to a loss]({image})", page)


def read_diagram(mermaid: str) -> tuple[dict[str, str], list[tuple[str, str, bool]]]:
    """Names to labels, and the arrows: from, to, whether both ways."""
    labels, arrows = {}, []
    for line in mermaid.splitlines()[1:]:
        if line.strip().startswith("subgraph") or line.strip() == "end":
            continue
        for name, box, round_box in _NODE.findall(line):
            labels[name] = (box or round_box).replace("<br>", "\n")
        names = re.findall(r"\w+|<-->|-->", _NODE.sub(r"\1", line))
        arrows += [
            (names[at - 1], names[at + 1], names[at] == "<-->")
            for at in range(1, len(names) - 1)
            if names[at].endswith("-->")
        ]
    return labels, arrows


def draw_diagram(mermaid: str) -> Figure:
    """Boxes in a grid with their arrows.

    Raises:
        KeyError: if the diagram has a box whose place is not known here.
    """
    from matplotlib.figure import Figure  # the site is built without it
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    labels, arrows = read_diagram(mermaid)
    figure = Figure(figsize=(12.4, 5.2), facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.5, 5.5), ylim=(3.45, -0.55))
    axes.axis("off")
    boxes = {}
    for name, label in labels.items():
        x, y = _PLACES[name]
        text = label.replace(", model/", ",\nmodel/")
        height = 0.2 + 0.13 * text.count("\n")
        boxes[name] = FancyBboxPatch(
            (x - 0.44, y - height),
            0.88,
            2 * height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=_FILL,
            edgecolor=_EDGE,
        )
        axes.add_patch(boxes[name])
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=_INK, linespacing=1.3)
    for start, end, both in arrows:
        back = (end, start, both) in arrows  # two arrows between the same boxes: bend them apart
        axes.add_patch(
            FancyArrowPatch(
                _PLACES[start],
                _PLACES[end],
                patchA=boxes[start],
                patchB=boxes[end],
                arrowstyle="<|-|>" if both else "-|>",
                mutation_scale=12,
                connectionstyle=f"arc3,rad={0.25 if back else 0}",
                color="#57606a",
            )
        )
    return figure
