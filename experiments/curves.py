"""CIDEr against epochs for several shares of the training images: does the order of two rows turn?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddcap.evaluation.metrics import bootstrap_interval
from experiments.difference import compare_rows
from experiments.notebook import Notebook
from experiments.plan import Plan, Trial
from experiments.split import Split
from experiments.table1 import TWIN, TWIN_BEAMS, score_row, with_beams
from experiments.trainings import train_if_missing, training_summary


def learning_curves(
    plan: Plan, split: Split, notebook: Notebook, say: Callable[[str], None], *, fast: bool = False
) -> dict[str, Any]:
    """Per share of the images: each row's curve from each seed, and its best model on `split`.

    Args:
        plan: its curves; what is not trained yet is trained now.
        split: the best models (by CIDEr on val) are scored on it; a twin with beams, too.
        notebook: holds what is finished.
        say: is told what begins.
        fast: without METEOR and SPICE.

    Returns:
        share to {"rows": {row: {seed: {"points": [...], "CIDEr", "interval_95", "repeated_word"}}},
        "differences": {row: ...}}; a point has epoch, CIDEr and loss on val. The differences are row g minus
        another, over the seeds that both have, see `difference.compare_rows`.
    """
    content: dict[str, Any] = {}
    for share, trials in plan.curves.items():
        rows: dict[str, dict[str, Any]] = {}
        per_image: dict[tuple[str, int], list[float]] = {}
        for one in trials:
            row = one.name.rpartition("-")[0]
            train_if_missing(one, say)
            summary = training_summary(one.recipe.training.output)
            points = [
                {
                    "epoch": _epoch(point["step"], summary["steps"], one),
                    "CIDEr": point["CIDEr"],
                    "loss": point["loss"],
                }
                for point in summary["val"]
            ]
            decodings = {row: one.recipe.decoding}
            if row == TWIN:
                decodings[TWIN_BEAMS] = with_beams(one, plan)
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


def _differences(per_image: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    """Row g minus every other row, image by image, over the seeds that both have."""
    found = {}
    for other in dict.fromkeys(row for row, _ in per_image if row != "g"):
        seeds = [seed for row, seed in per_image if row == other and ("g", seed) in per_image]
        if seeds:
            ours, theirs = ({seed: per_image[row, seed] for seed in seeds} for row in ("g", other))
            found[other] = compare_rows(ours, theirs)
    return found
