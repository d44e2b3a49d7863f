"""The results of an ablation as Markdown, side by side with the paper's figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from experiments.paper import INFILLING_CIDER, TABLE_1, TWIN_CIDER

NAMES = {"twin": "twin, greedy", "twin_beams": "twin, beams"}
_METRICS = ("BLEU-4", "METEOR", "ROUGE-L", "SPICE")
_SWEEPS = {
    "guidance": "guidance s (row g)",
    "steps": "decoding steps (row g)",
    "length": "caption length (row g)",
    "replacement_mass": "replacement mass (row f, shorter trainings)",
    "designs": "designs in question (row f, shorter trainings)",
    "drop_probability": "probability p of dropping the image (row g, shorter trainings)",
}


def to_markdown(results: dict[str, Any]) -> str:
    """All tables of `metrics.json`, as one Markdown text."""
    parts = [f"## Does the order turn?\n\n{_curves(results)}"] if results.get("curves") else []
    if results["rows"]:
        parts += _rows(results)
    if results["infilling"]:
        parts.append(f"## Caption infilling\n\n{_infilling(results)}")
    if results["sweeps"]:
        parts.append("## Sweeps\n\n" + "\n\n".join(_sweep(*item) for item in results["sweeps"].items()))
    if results.get("trainings"):
        parts.append(f"## Trainings\n\n{_trainings(results)}")
    return "\n\n".join(parts) + "\n"


def _rows(results: dict[str, Any]) -> list[str]:
    return [
        f"## Table 1\n\n{_table_1(results)}\n\n{_footnote(results)}",
        f"## The captions themselves\n\n{_captions(results)}",
        f"## What agrees with the paper\n\n{_claims(results)}",
    ]


def _curves(results: dict[str, Any]) -> str:
    """CIDEr on val at every epoch, a line for each row; then the best models on the scored split."""
    parts = []
    for share, content in results["curves"].items():
        curves = {
            name: [seed["points"] for seed in seeds.values()]
            for name, seeds in content["rows"].items()
            if all(seed["points"] for seed in seeds.values())
        }
        longest = max((points for seeds in curves.values() for points in seeds), key=len)
        header = [
            f"{float(share):.0%} of the pictures, epochs",
            *(f"{point['epoch']:g}" for point in longest),
        ]
        lines = [
            [f"{NAMES.get(name, name)}, {key}", *_means(seeds, key, len(longest), digits)]
            for key, digits in (("CIDEr", 1), ("loss", 2))
            for name, seeds in curves.items()
        ]
        parts.append(_table(header, lines))
    best = []
    for share, content in results["curves"].items():
        for name, seeds in content["rows"].items():
            cider = sum(seed["CIDEr"] for seed in seeds.values()) / len(seeds)
            repeats = sum(seed["repeated_word"] for seed in seeds.values()) / len(seeds)
            over = content["differences"].get(name)
            lead = (
                ""
                if over is None
                else f"{_signed(over['difference'])} {_interval(over['interval_95'], signed=True)}"
            )
            cells = [
                f"{float(share):.0%}",
                NAMES.get(name, name),
                str(len(seeds)),
                f"{cider:.1f}",
                f"{repeats:.1%}",
            ]
            best.append([*cells, lead])
    header = ["pictures", "row", "seeds", "CIDEr", "repeat a word", "g is ahead by [95 %, paired]"]
    pictures = f"{results['test_images']} {results['split']} pictures"
    text = f"The best models of these trainings (chosen on val), on {pictures}:"
    return "\n\n".join([*parts, text, _table(header, best)])


def _means(seeds: Sequence[Sequence[dict[str, Any]]], key: str, columns: int, digits: int) -> list[str]:
    """The mean over seeds at every point that all of them have, else an empty cell."""
    means = mean_points(seeds, key)
    return [*(f"{mean:.{digits}f}" for mean in means), *[""] * (columns - len(means))]


def mean_points(seeds: Sequence[Sequence[dict[str, Any]]], key: str) -> list[float]:
    """The mean over seeds of a curve, as far as all of them go."""
    length = min(map(len, seeds))
    return [sum(points[i][key] for points in seeds) / len(seeds) for i in range(length)]


def _table_1(results: dict[str, Any]) -> str:
    rows = []
    for name, row in results["rows"].items():
        mean, (low, high) = row["mean"], row["interval_95"]
        seeds = " / ".join(f"{metrics['CIDEr']:.1f}" for metrics in row["seeds"].values())
        is_twin = name.startswith("twin")
        rows.append(
            [
                NAMES.get(name, name),
                *("x" if on and not is_twin else "" for on in row["designs"].values()),
                f"**{mean['CIDEr']:.1f}** [{low:.1f}, {high:.1f}]",
                seeds,
                *(_number(mean.get(metric)) for metric in _METRICS),
                _number(paper_cider(name)),
                _number(TABLE_1.get(name, {}).get("BLEU-4")),
            ]
        )
    designs = list(next(iter(results["rows"].values()))["designs"])
    header = ["row", *designs, "CIDEr [95 %]", "per seed", *_METRICS, "paper CIDEr", "paper B@4"]
    return _table(header, rows)


def _footnote(results: dict[str, Any]) -> str:
    human = results.get("human")
    lines = [
        f"{results['test_images']} {results.get('split', 'test')} pictures of `{results['data']}`; "
        "CIDEr's interval is a bootstrap over pictures of the mean over seeds; the paper's figures are on "
        "COCO validation. "
        f"Scored on: {results['machine']}."
    ]
    if human:
        cider = human["metrics"]["CIDEr"]
        lines.append(f"Human leave-one-out on the same pictures: CIDEr {cider:.1f}.")
    not_run = {name: reason for row in results["rows"].values() for name, reason in row["not_run"].items()}
    lines.extend(f"{name} was not run: {reason}." for name, reason in not_run.items())
    return "\n".join(lines)


def _captions(results: dict[str, Any]) -> str:
    """What scores do not show, of every row's first seed and of the human captions."""
    shown = {NAMES.get(name, name): row["diagnostics"] for name, row in results["rows"].items()}
    if results.get("human"):
        shown["human"] = results["human"]["diagnostics"]
    shares = ("copied_from_training", "empty", "repeated_word", "repeated_bigram")
    rows = [
        [
            name,
            f"{diagnostics['mean_length']:.1f}",
            str(diagnostics["distinct_words"]),
            *("" if diagnostics[key] is None else f"{diagnostics[key]:.1%}" for key in shares),
        ]
        for name, diagnostics in shown.items()
    ]
    header = ["row", "words", "distinct words", "copied from training", "empty"]
    return _table([*header, "repeat a word", "repeat a bigram"], rows)


def _claims(results: dict[str, Any]) -> str:
    rows = [
        [
            f"{NAMES.get(claim['better'], claim['better'])} > {NAMES.get(claim['worse'], claim['worse'])}",
            claim["what"],
            _signed(paper_difference(claim)),
            f"{_signed(claim['difference'])} {_interval(claim['interval_95'], signed=True)}",
            with_seeds(claim),
            claim["verdict"],
        ]
        for claim in results["claims"]
    ]
    header = ["claim", "in words", "paper, COCO", "here [95 %, paired]", "with the seeds [95 %]", "verdict"]
    return f"{_table(header, rows)}\n\n{how_it_is_settled(results)}"


def _infilling(results: dict[str, Any]) -> str:
    rows = []
    for share, systems in results["infilling"].items():
        for name in ("g", "twin", "twin_beams", "g - twin", "g - twin_beams"):
            scores = systems[name]
            cells = [
                f"{scores[key]['mean']:.1f} {_interval(scores[key]['interval_95'])}"
                for key in ("whole", "blanks", "exact")
            ]
            kept = f"{scores['kept']['mean']:.1f}" if "kept" in scores else ""
            label = " - ".join(NAMES.get(part, part) for part in name.split(" - "))
            rows.append([f"{float(share):.0%}", label, *cells, kept])
    header = ["masked", "model", "CIDEr, whole caption", "CIDEr, blanks alone", "blanks exact, %"]
    header.append("CIDEr, kept words alone")
    paper = INFILLING_CIDER
    return (
        _table(header, rows)
        + f"\n\nThe paper (COCO, whole caption): {paper['diffusion']} against {paper['twin']} for the "
        "autoregressive model."
    )


def _sweep(name: str, points: Sequence[dict[str, Any]]) -> str:
    rows = [
        [point["value"], f"{point['CIDEr']:.1f} {_interval(point['interval_95'])}", f"{point['words']:.1f}"]
        for point in points
    ]
    title = _SWEEPS.get(name, name)
    table = _table([name.replace("_", " "), "CIDEr [95 %]", "words"], rows)
    return f"### {title[0].upper()}{title[1:]}, on val\n\n{table}"


def _trainings(results: dict[str, Any]) -> str:
    rows = []
    for name, training in results["trainings"].items():
        curve = ", ".join(f"{point['CIDEr']:.1f}" for point in training["val"] if point["CIDEr"] is not None)
        rows.append([name, str(training["steps"]), f"{training['hours']:.2f}", curve])
    total = sum(training["hours"] for training in results["trainings"].values())
    table = _table(["training", "steps", "hours", "CIDEr on val, as it grew"], rows)
    return f"{table}\n\n{total:.1f} hours of training steps in all."


def paper_cider(name: str) -> float | None:
    """The paper's CIDEr of a row; it has one figure for the twin, however decoded. None for other names."""
    if name.startswith("twin"):
        return TWIN_CIDER
    return TABLE_1[name]["CIDEr"] if name in TABLE_1 else None


def paper_difference(claim: dict[str, Any]) -> float | None:
    """The paper's difference in CIDEr between the two rows of a claim, None if it does not have both."""
    better, worse = paper_cider(claim["better"]), paper_cider(claim["worse"])
    return None if better is None or worse is None else better - worse


def with_seeds(claim: dict[str, Any]) -> str:
    """The interval of a claim over pictures and seeds, or why there is none."""
    interval = claim["interval_95_seeds"]
    return "one seed only" if interval is None else _interval(interval, signed=True)


def how_it_is_settled(results: dict[str, Any]) -> str:
    """What the verdicts of a page rest on, and how many comparisons it makes."""
    claims = len(results["claims"])
    text = (
        "The first interval is a bootstrap over pictures of the mean over seeds. The second adds what the "
        "seeds differ by (Student's t), and it alone gives the verdict: not settled where it holds 0, or "
        f"where a row has one seed. These are {claims} comparisons, each at 95 %, which nothing corrects for "
        f"their number: if no rows differed, {claims / 20:.1f} of them would on average seem settled by "
        "chance."
    )
    infilling = 6 * len(results["infilling"])
    if infilling:
        text += (
            f" Caption infilling below makes {infilling} more, of one seed each and over pictures only: they "
            "have no verdict."
        )
    return text


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def _interval(ends: Sequence[float], *, signed: bool = False) -> str:
    low, high = ends
    return f"[{low:+.1f}, {high:+.1f}]" if signed else f"[{low:.1f}, {high:.1f}]"
