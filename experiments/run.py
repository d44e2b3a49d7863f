"""The whole ablation: train what is missing, decode, score, sweep, fill blanks, and gather it all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddcap.errors import DataError
from ddcap.files import write_json
from ddcap.machine import ALONE, Processes, describe_machine
from ddcap.recipe import Recipe
from experiments.curves import learning_curves
from experiments.infilling_comparison import compare_infilling
from experiments.notebook import Notebook
from experiments.nouns import add_nouns
from experiments.plan import Plan
from experiments.side_by_side import Scoring, train_side_by_side
from experiments.split import load_split
from experiments.sweeps import decoding_sweep, training_sweep
from experiments.table1 import check_claims, decodings_of, gather_rows, score_humans, score_row
from experiments.trainings import train_together, training_summary
from experiments.verdict import settle

METRICS_NAME = "metrics.json"


def ablate(
    plan: Plan,
    output: str | Path,
    *,
    limit: int | None = None,
    fast: bool = False,
    say: Callable[[str], None] = lambda _: None,
    device: str = "cpu",
    processes: Processes = ALONE,
    jobs: int = 1,
) -> Path | None:
    """Run a plan; whatever is finished is not repeated.

    Several processes train together; the first then does the rest.

    Args:
        plan: see `load_plan`.
        output: folder for `trainings/`, `results/` and `metrics.json`.
        limit: evaluate on the first so many images of test and val only.
        fast: without METEOR and SPICE.
        say: is told what begins.
        device: where images are captioned; trainings take a GPU where there is one.
        processes: this one and the others, if there are any; every one has to call this.
        jobs: trainings at a time, each in a process of its own.

    Returns:
        The path of `metrics.json`, which `markdown.py` and `report.py` read; None in all processes but the
        first.

    Raises:
        DDCapError: if data, plan or a checkpoint are not usable.
    """
    output = Path(output)
    if processes.count > 1:
        train_together(plan.trials, say, processes)
    if processes.index:
        return None
    if jobs > 1:
        train_side_by_side(plan, jobs, Scoring(output, limit, fast, device), say)
    notebook = Notebook(output / "results")
    base = plan.trials[0].recipe
    test, val = (load_split(base, name, limit, device) for name in (plan.file.split, "val"))
    rows = {
        label: score_row(one, test, notebook, say, fast=fast) for label, one in decodings_of(plan).items()
    }
    rows = add_nouns(rows, test, notebook)
    content: dict[str, Any] = {
        "format": "ddcap-ablation-1",
        "data": base.data.json,
        "data_files": _data_files(base),
        "models": _models(plan, output),
        "split": test.name,
        "test_images": len(test.records),
        "val_images": len(val.records),
        "machine": describe_machine(),
        "rows": gather_rows(plan, rows),
        "claims": check_claims(rows, plan),
        "human": score_humans(test, notebook, fast=fast),
        "sweeps": {},
        "infilling": compare_infilling(plan, test, notebook, say),
        "curves": learning_curves(plan, test, notebook, say, fast=fast),
    }
    content = settle(content)
    write_json(output / METRICS_NAME, content)  # the sweeps below may take hours
    for name, values in plan.file.decoding_sweeps.items():
        content["sweeps"][name] = decoding_sweep(plan, name, values, val, notebook, say)
    for name, trials in plan.sweeps.items():
        content["sweeps"][name] = training_sweep(trials, val, notebook, say)
    folders = sorted({one.recipe.training.output for one in plan.trials})
    content["trainings"] = {Path(folder).name: training_summary(folder) for folder in folders}
    write_json(output / METRICS_NAME, content)
    return output / METRICS_NAME


def _data_files(recipe: Recipe) -> dict[str, str]:
    root = Path(recipe.data.root)
    return {"json": str(root / recipe.data.json), "images": str(root / recipe.data.images)}


def _models(plan: Plan, output: Path) -> dict[str, str]:
    """Row to the folder of its first seed's model, relative to `output`."""
    folders = {one.name: Path(one.recipe.training.output) / "best" for one in reversed(plan.rows)}
    return {name: str(folder.relative_to(output)) for name, folder in sorted(folders.items())}


def load_ablation(folder: str | Path) -> dict[str, Any]:
    """Read what `ablate` wrote; its claims are judged anew.

    Args:
        folder: the output of `ablate`, or its `metrics.json`, wherever that lies.

    Raises:
        DataError: if there is none.
    """
    path = Path(folder)
    path = path if path.suffix == ".json" else path / METRICS_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(
            f"{path}: no ablation's results; run `python -m experiments ablate` with --output {folder}"
        ) from None
    if not isinstance(content, dict) or content.get("format") != "ddcap-ablation-1":
        raise DataError(
            f"{path}: not an ablation's results; run `python -m experiments ablate` with --output {folder}"
        )
    return settle(content)
