"""The results of an ablation as Markdown, side by side with the paper's figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from experiments.paper import INFILLING_CIDER, TABLE_1, TWIN_CIDER
from experiments.verdict import LEVEL, interval_over_seeds

NAMES = {
    "twin": "autoregressive, greedy",
    "twin_beams": "autoregressive, beams",
    "d_noised": "d, noised padding",
    "d_known": "d, known padding",
    "g_candidates": "g, 3 candidates",
    "g_margin": "g, margin order",
    "g_replacement": "g, replacement 0.2",
    "g_difference": "g, told what follows",
    "g_selfcond": "g, self-conditioning",
}
_WITH_SEEDS, _P = "with the seeds [95 %]", "p / Holm"
_METRICS = ("BLEU-4", "METEOR", "ROUGE-L", "SPICE")
_NOUNS = ("precision", "recall")
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
            f"{float(share):.0%} of the images, epochs",
            *(f"{point['epoch']:g}" for point in longest),
        ]
        lines = [
            [f"{NAMES.get(name, name)}, {key}", *_means(seeds, key, len(longest), digits)]
            for key, digits in (("CIDEr", 1), ("loss", 2))
            for name, seeds in curves.items()
        ]
        parts.append(_table(header, lines))
    parts += _after_the_last_epoch(results)
    leads = [lead for content in results["curves"].values() for lead in content["differences"].values()]
    has_p = any("p" in lead for lead in leads)
    best = []
    for share, content in results["curves"].items():
        for name, seeds in content["rows"].items():
            cider = sum(seed["CIDEr"] for seed in seeds.values()) / len(seeds)
            repeats = sum(seed["repeated_word"] for seed in seeds.values()) / len(seeds)
            over = content["differences"].get(name)
            cells = [
                f"{float(share):.0%}",
                NAMES.get(name, name),
                str(len(seeds)),
                f"{cider:.1f}",
                f"{repeats:.1%}",
            ]
            best.append([*cells, *_lead(over, has_p)])
    header = ["images", "row", "seeds", "CIDEr", "repeat a word", "g is ahead by [95 %, paired]"]
    if has_p:
        header += [_WITH_SEEDS, _P, "settled"]
    images = f"{results['test_images']} {results['split']} images"
    text = f"The best models of these trainings (chosen on val), on {images}:"
    parts += [text, _table(header, best)]
    return "\n\n".join([*parts, _how_p_settles(leads)] if has_p else parts)


def _after_the_last_epoch(results: dict[str, Any]) -> list[str]:
    """Write the lead of g over the twin where nobody stopped them, on val, from each seed that both have."""
    rows = []
    for share, content in results["curves"].items():
        ours, theirs = (content["rows"].get(name, {}) for name in ("g", "twin"))
        pairs = [(ours[seed]["points"][-1], theirs[seed]["points"][-1]) for seed in ours if seed in theirs]
        if pairs and len({point["epoch"] for pair in pairs for point in pair}) == 1:
            leads = [one["CIDEr"] - other["CIDEr"] for one, other in pairs]
            interval = interval_over_seeds(leads)
            rows.append(
                [
                    f"{float(share):.0%}",
                    f"{pairs[0][0]['epoch']:g}",
                    _signed(sum(leads) / len(leads)),
                    " / ".join(_signed(lead) for lead in leads),
                    "one seed only" if interval is None else _interval(interval, signed=True),
                ]
            )
    if not rows:
        return []
    header = ["images", "epochs", f"g - {NAMES['twin']}", "per seed", "over the seeds [95 %]"]
    return ["After the last epoch, CIDEr on val:", _table(header, rows)]


def _lead(over: dict[str, Any] | None, has_p: bool) -> list[str]:
    """Cells of how far row g is ahead of another row; empty for itself."""
    if over is None:
        return [""] * (4 if has_p else 1)
    cells = [f"{_signed(over['difference'])} {_interval(over['interval_95'], signed=True)}"]
    settled = {"agrees": "g is ahead", "disagrees": "g is behind"}
    if has_p:
        cells += [with_seeds(over), p_cell(over), settled.get(over["verdict"], over["verdict"])]
    return cells


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
    metrics = [name for name in _METRICS if any(name in row["mean"] for row in results["rows"].values())]
    for name, row in results["rows"].items():
        mean, (low, high) = row["mean"], row["interval_95"]
        seeds = " / ".join(f"{one['CIDEr']:.1f}" for one in row["seeds"].values())
        is_twin = name.startswith("twin")
        rows.append(
            [
                NAMES.get(name, name),
                *("x" if on and not is_twin else "" for on in row["designs"].values()),
                f"**{mean['CIDEr']:.1f}** [{low:.1f}, {high:.1f}]",
                seeds,
                *(_number(mean.get(metric)) for metric in metrics),
                _number(paper_cider(name)),
                _number(TABLE_1.get(name, {}).get("BLEU-4")),
            ]
        )
    designs = list(next(iter(results["rows"].values()))["designs"])
    header = ["row", *designs, "CIDEr [95 %]", "per seed", *metrics, "paper CIDEr", "paper B@4"]
    return _table(header, rows)


def _footnote(results: dict[str, Any]) -> str:
    human = results.get("human")
    lines = [
        f"{results['test_images']} {results.get('split', 'test')} images of `{results['data']}`; "
        "CIDEr's interval is a bootstrap over images of the mean over seeds; the paper's figures are on "
        "COCO validation. "
        f"Scored on: {results['machine']}."
    ]
    if human:
        cider = human["metrics"]["CIDEr"]
        lines.append(f"Human leave-one-out on the same images: CIDEr {cider:.1f}.")
    not_run = {name: reason for row in results["rows"].values() for name, reason in row["not_run"].items()}
    lines.extend(f"{name} was not run: {reason}." for name, reason in not_run.items())
    return "\n".join(lines)


def _captions(results: dict[str, Any]) -> str:
    """Write what scores do not show, of every row's first seed and of human captions; nouns of all seeds."""
    shown = {NAMES.get(name, name): row["diagnostics"] for name, row in results["rows"].items()}
    nouns = {NAMES.get(name, name): row["nouns"] for name, row in results["rows"].items() if "nouns" in row}
    if results.get("human"):
        shown["human"] = results["human"]["diagnostics"]
        if "nouns" in results["human"]:
            nouns["human"] = results["human"]["nouns"]
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
    text = _table([*header, "repeat a word", "repeat a bigram"], rows)
    return f"{text}\n\n{_nouns(results, nouns)}" if nouns else text


def _nouns(results: dict[str, Any], nouns: dict[str, dict[str, Any]]) -> str:
    """Agreement of nouns of every row, then the differences of the claims' rows."""
    rows = [
        [
            name,
            *(
                f"{100 * kinds[kind]['mean']:.1f} {_interval(_per_cent(kinds[kind]['interval_95']))}"
                for kind in _NOUNS
            ),
        ]
        for name, kinds in nouns.items()
    ]
    differences = [
        [
            _rows_of(claim),
            *(
                cell
                for found in (claim["nouns"][kind] for kind in _NOUNS)
                for cell in (
                    f"{_signed(100 * found['difference'])} "
                    f"{_interval(_per_cent(found['interval_95']), signed=True)}",
                    "one seed only"
                    if found["interval_95_seeds"] is None
                    else _interval(_per_cent(found["interval_95_seeds"]), signed=True),
                )
            ),
        ]
        for claim in results["claims"]
        if "nouns" in claim
    ]
    text = (
        "Nouns, in the singular, against those of the human captions. Precision: of a caption's nouns, the "
        "share that any human caption of the image has. Recall: of the nouns that two or more human "
        "captions have, the share that the caption has. Synonyms are not merged. A human caption is held "
        "against the others of its image, one fewer."
    )
    tables = [text, _table(["row", *(f"{kind}, % [95 %]" for kind in _NOUNS)], rows)]
    if differences:
        header = ["rows"]
        for kind in _NOUNS:
            header += [f"{kind} [95 %, paired]", _WITH_SEEDS]
        tables += ["How far the first row is ahead in these:", _table(header, differences)]
    return "\n\n".join(tables)


def _claims(results: dict[str, Any]) -> str:
    has_p = any("p" in claim for claim in results["claims"])
    rows = [
        [
            _rows_of(claim),
            claim["what"],
            _signed(paper_difference(claim)),
            f"{_signed(claim['difference'])} {_interval(claim['interval_95'], signed=True)}",
            with_seeds(claim),
            *([p_cell(claim)] if has_p else []),
            claim["verdict"],
        ]
        for claim in results["claims"]
    ]
    header = ["claim", "in words", "paper, COCO", "here [95 %, paired]", _WITH_SEEDS]
    header += [_P, "verdict"] if has_p else ["verdict"]
    return f"{_table(header, rows)}\n\n{how_it_is_settled(results)}"


def _infilling(results: dict[str, Any]) -> str:
    rows = []
    for share, systems in results["infilling"].items():
        for name in ("g", "twin", "twin_beams", "g - twin", "g - twin_beams"):
            scores = systems[name]
            cells = [_infilling_cell(scores[key]) for key in ("whole", "blanks", "exact")]
            kept = f"{scores['kept']['mean']:.1f}" if "kept" in scores else ""
            label = " - ".join(NAMES.get(part, part) for part in name.split(" - "))
            rows.append([f"{float(share):.0%}", label, *cells, kept])
    header = ["masked", "model", "CIDEr, whole caption", "CIDEr, blanks alone", "blanks exact, %"]
    header.append("CIDEr, kept words alone")
    paper = INFILLING_CIDER
    tested = _tested_infilling(results)
    how = (
        " Differences are over images and seeds, as in the table of claims; **bold** ones are settled "
        f"among the {tested} of this table (Holm)."
        if tested
        else ""
    )
    return (
        _table(header, rows)
        + f"\n\nThe paper (COCO, whole caption): {paper['diffusion']} against {paper['twin']} for the "
        f"autoregressive model.{how}"
    )


def _tested_infilling(results: dict[str, Any]) -> int:
    """Count the differences of infilling that have a p."""
    return sum(
        score.get("p") is not None
        for systems in results["infilling"].values()
        for name, scores in systems.items()
        if " - " in name
        for score in scores.values()
    )


def _infilling_cell(score: dict[str, Any]) -> str:
    interval = score.get("interval_95_seeds") or score["interval_95"]
    mean = f"{score['mean']:.1f}"
    is_settled = score.get("verdict", "not settled") != "not settled"
    return f"{f'**{mean}**' if is_settled else mean} {_interval(interval)}"


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
    """The paper's difference in CIDEr between the two rows of a claim, None if it does not have both.

    It has one twin, so none for two decodings of it.
    """
    if all(claim[side].startswith("twin") for side in ("better", "worse")):
        return None
    better, worse = paper_cider(claim["better"]), paper_cider(claim["worse"])
    return None if better is None or worse is None else better - worse


def with_seeds(claim: dict[str, Any]) -> str:
    """The interval of a claim over images and seeds, or why there is none."""
    interval = claim["interval_95_seeds"]
    return "one seed only" if interval is None else _interval(interval, signed=True)


def p_cell(comparison: dict[str, Any]) -> str:
    """The p-value of a comparison, alone and corrected for the number of comparisons; empty without seeds."""
    p, p_holm = comparison.get("p"), comparison.get("p_holm")
    return "" if p is None or p_holm is None else f"{_probability(p)} / {_probability(p_holm)}"


def how_it_is_settled(results: dict[str, Any]) -> str:
    """Write what the verdicts of a page rest on, and how many comparisons it makes."""
    claims = len(results["claims"])
    if any("p" in claim for claim in results["claims"]):
        text = _how_p_settles(results["claims"])
        if results["infilling"] and not _tested_infilling(results):
            text += " Caption infilling below has intervals over images only, and no verdict."
        return text
    text = (
        "The first interval is a bootstrap over images of the mean over seeds. The second adds what the "
        "seeds differ by (Student's t), and it alone gives the verdict: not settled where it holds 0, or "
        f"where a row has one seed. These are {claims} comparisons, each at 95 %, which nothing corrects for "
        f"their number: if no rows differed, {claims / 20:.1f} of them would on average seem settled by "
        "chance."
    )
    infilling = 6 * len(results["infilling"])
    if infilling:
        text += (
            f" Caption infilling below makes {infilling} more, of one seed each and over images only: they "
            "have no verdict."
        )
    return text


def _how_p_settles(comparisons: Sequence[dict[str, Any]]) -> str:
    tested = sum(one.get("p") is not None for one in comparisons)
    if not tested:
        return "Intervals are over images alone. A row of one seed settles nothing, so nothing is tested."
    text = (
        "The first interval is a bootstrap over images of the mean over seeds. The second is over images "
        "and seeds: a two-level bootstrap in which the few seeds enter by Student's t. p is two-sided and of "
        f"both; Holm's correction holds it against the number of comparisons tested here, {tested}. What is "
        f"under {LEVEL:g} then is settled: if no rows differed, the whole table would settle anything in at "
        f"most {LEVEL:.0%} of all such experiments. Intervals are of one comparison each. Decodings of the "
        "same trainings are compared training by training."
    )
    if tested < len(comparisons):
        text += f" {len(comparisons) - tested} more have a row of one seed and are not tested."
    return text


def _rows_of(claim: dict[str, Any]) -> str:
    return f"{NAMES.get(claim['better'], claim['better'])} > {NAMES.get(claim['worse'], claim['worse'])}"


def _per_cent(ends: Sequence[float]) -> list[float]:
    return [100 * end for end in ends]


def _probability(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


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
