"""One self-contained HTML page about an ablation: tables, curves, and photographs with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddcap.captioner import Captioner
from ddcap.data.records import load_karpathy
from ddcap.errors import DataError, MissingExtraError, remedy
from ddcap.files import write_text
from experiments.charts import draw_charts, to_svg
from experiments.gallery import Exhibit, choose_evenly, make_gallery
from experiments.markdown import (
    NAMES,
    how_it_is_settled,
    p_cell,
    paper_cider,
    paper_difference,
    to_markdown,
    with_seeds,
)
from experiments.run import load_ablation

_TEMPLATE = Path(__file__).parent / "report.html.j2"
_METRICS = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L", "SPICE")


def write_report(folder: str | Path, output: str | Path, *, photos: int = 24) -> Path:
    """Write the page about the ablation in `folder` to `output`.

    Args:
        folder: what `ablate` wrote; its models caption the gallery.
        output: the HTML file, or `.md` for the tables alone.
        photos: of the split that was scored, evenly spread; 0 leaves the gallery out.

    Raises:
        DataError: if there are no results, or the page cannot be written.
        ImageError: if a photograph cannot be read.
        MissingExtraError: if matplotlib or jinja2 is not installed.
    """
    results = load_ablation(folder)
    if Path(output).suffix == ".md":
        page = to_markdown(results)
    else:
        page = render_report(results, _gallery(Path(folder), results, photos) if photos else [])
    try:
        write_text(output, page)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror}); {remedy(error)}") from None
    return Path(output)


def render_report(results: dict[str, Any], gallery: Sequence[Exhibit]) -> str:
    """The page as text; captions and names are escaped."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("writing a report", "report") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["name"] = lambda name: NAMES.get(name, name)
    environment.filters["shade"] = shade
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        results=results,
        metrics=[name for name in _METRICS if any(name in row["mean"] for row in results["rows"].values())],
        charts={name: to_svg(figure) for name, figure in draw_charts(results).items()},
        gallery=gallery,
        paper_cider=paper_cider,
        paper_difference=paper_difference,
        with_seeds=with_seeds,
        p_cell=p_cell,
        has_p=any("p" in claim for claim in results["claims"]),
        how_it_is_settled=how_it_is_settled,
    )


def shade(confidence: float) -> str:
    """CSS background of a word: orange where the model guessed, over white, to green where it was sure."""
    hue = 30 if confidence < 0.5 else 150
    strength = abs(confidence - 0.5) * 2
    return f"hsl({hue} 70% {97 - 27 * strength:.0f}%)"


def _gallery(folder: Path, results: dict[str, Any], photos: int) -> list[Exhibit]:
    if "models" not in results:
        raise DataError(f"{folder}: holds figures without models for the gallery; use --photos 0")
    data, models = results["data_files"], results["models"]
    if "g" not in models:
        raise DataError(f"{folder}: has no row g to caption the gallery with; use --photos 0")
    records = load_karpathy(data["json"], data["images"], results.get("split", "test"))
    twin = Captioner.from_pretrained(folder / models["twin"], runtime="torch") if "twin" in models else None
    ours = Captioner.from_pretrained(folder / models["g"], runtime="torch")
    return make_gallery(choose_evenly(records, photos), ours, twin)
