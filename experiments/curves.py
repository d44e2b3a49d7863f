"""CIDEr against epochs for several shares of the training pictures: does the order of two rows turn?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddcap.evaluation.metrics import bootstrap_interval
from ddcap.settings import DecodingSettings, dump_settings, parse_settings
from experiments.notebook import Notebook
from experiments.plan import Plan, Trial
from experiments.split import Split
from experiments.table1 import TWIN, TWIN_BEAMS, score_row
from experiments.trainings import trained, training_summary


def learning_curves(
    plan: Plan, split: Split, notebook: Notebook, say: Callable[[str], None], *, fast: bool = False
) -> dict[str, Any]:
    """Per share of the pictures: each row's curve from each seed, and its best model on `split`.

    Args:
        plan: its curves; what is not trained yet is trained now.
        split: the best models (by CIDEr on val) are scored on it; a twin with beams, too.
        notebook: holds what is finished.
        say: is told what begins.
        fast: without METEOR and SPICE.

    Returns:
        share to {"rows": {row: {seed: {"points": [...], "CIDEr", "interval_95", "repeated_word"}}},
        "differences": {row: ...}}; a point has epoch, CIDEr and loss on val. The differences are row g minus
        another, paired over pictures, each a mean over the seeds that both have.
    """
    content: dict[str, Any] = {}
    for share, trials in plan.curves.items():
        rows: dict[str, dict[str, Any]] = {}
        per_image: dict[tuple[str, int], list[float]] = {}
        for one in trials:
            row = one.name.rpartition("-")[0]
            trained(one, say, split.device)
            summary = training_summary(one.recipe.training.output)
            points = [
                {"epoch": _epoch(point["step"], summary["steps"], one), **_scores(point)}
                for point in summary["val"]
            ]
            decodings = {row: one.recipe.decoding}
            if row == TWIN:
                beams = {**dump_settings(one.recipe.decoding), "beams": plan.file.beams}
                decodings[TWIN_BEAMS] = parse_settings(DecodingSettings, beams, "plan")
            for name, settings in decodings.items():
                scored = score_row((one, settings), split, notebook, say, fast=fast)
                per_image[name, one.seed] = scored["per_image"]["CIDEr"]
                rows.setdefault(name, {})[str(one.seed)] = {
                    "points": points if name == row else [],
                    "hours": summary["hours"],
                    "CIDEr": scored["metrics"]["CIDEr"],
                    "interval_95": list(bootstrap_interval(scored["per_image"]["CIDEr"])),
                    "repeated_word": scored["diagnostics"]["repeated_word"],
                }
        content[share] = {"rows": rows, "differences": _differences(per_image)}
    return content


def _epoch(step: int, steps: int, trial: Trial) -> float:
    """The epoch that a validation was planned for; a step is a whole one, so it comes a little off."""
    settings = trial.recipe.training
    epoch = step * settings.epochs / steps
    return min([*settings.validate_at, settings.epochs], key=lambda planned: abs(planned - epoch))


def _scores(point: dict[str, Any]) -> dict[str, Any]:
    return {"CIDEr": point["CIDEr"], "loss": point["loss"]}


def _differences(per_image: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    """Row g minus every other row, picture by picture, over the seeds that both have."""
    found = {}
    for other in dict.fromkeys(row for row, _ in per_image if row != "g"):
        seeds = [seed for row, seed in per_image if row == other and ("g", seed) in per_image]
        if not seeds:
            continue
        columns = [
            [a - b for a, b in zip(per_image["g", seed], per_image[other, seed], strict=True)]
            for seed in seeds
        ]
        means = [sum(values) / len(values) for values in zip(*columns, strict=True)]
        found[other] = {
            "difference": sum(means) / len(means),
            "interval_95": list(bootstrap_interval(means)),
            "per_seed": [sum(column) / len(column) for column in columns],
        }
    return found


def crossing(ours: list[dict[str, Any]], other: list[dict[str, Any]]) -> float | None:
    """The first epoch, of those where both were validated, from which on `ours` is never under `other`."""
    scores = {point["epoch"]: point["CIDEr"] for point in other}
    shared = [
        (point["epoch"], point["CIDEr"] - scores[point["epoch"]])
        for point in ours
        if point["epoch"] in scores
    ]
    ahead = None
    for epoch, lead in reversed(shared):
        if lead < 0:
            break
        ahead = epoch
    return ahead
