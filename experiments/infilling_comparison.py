"""Caption infilling by the diffusion model and by its autoregressive twin, on the same blanks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ddcap.settings import DecodingSettings, dump_settings
from experiments.difference import compare_rows
from experiments.infilling import evaluate_infilling
from experiments.means import mean_of, summary
from experiments.notebook import Notebook
from experiments.plan import Plan, Trial, training_settings
from experiments.split import Split
from experiments.table1 import TWIN, TWIN_BEAMS, decodings_of
from experiments.trainings import trained


def compare_infilling(
    plan: Plan, split: Split, notebook: Notebook, say: Callable[[str], None]
) -> dict[str, Any]:
    """Per share of masked words: both models' scores, and the paired differences to the twin.

    Scores are means over the seeds that g and the twin both have, image by image.
    """
    seeds = sorted({one.seed for one in plan.named("g")} & {one.seed for one in plan.named(TWIN)})
    if not seeds:
        return {}
    content: dict[str, Any] = {}
    for share in plan.file.infilling.shares:
        parts = fill_blanks(plan, split, notebook, say, share)
        scored = {name: _mean([parts[name, seed] for seed in seeds]) for name in ("g", TWIN, TWIN_BEAMS)}
        content[f"{share:g}"] = {
            "seeds": len(seeds),
            **scored,
            "g - twin": _paired(parts, seeds, TWIN),
            "g - twin_beams": _paired(parts, seeds, TWIN_BEAMS),
        }
    return content


def fill_blanks(
    plan: Plan, split: Split, notebook: Notebook, say: Callable[[str], None], share: float
) -> dict[tuple[str, int], dict[str, Any]]:
    """(row, seed) to its scores, for every g and twin of the plan; see `InfillingScores.to_dict`."""
    settings = plan.file.infilling
    scored = {}
    for (name, seed), (trial, decoding) in decodings_of(plan).items():
        if name not in ("g", TWIN, TWIN_BEAMS):
            continue

        def compute(trial: Trial = trial, decoding: DecodingSettings = decoding) -> dict[str, Any]:
            captioner = trained(trial, say, split.device)
            return evaluate_infilling(captioner, split, decoding, share, settings.seed).to_dict()

        made_from = [
            training_settings(trial.recipe),
            dump_settings(decoding),
            share,
            settings.seed,
            len(split.records),
        ]
        say(f"infilling {share:.0%}, {name}, seed {seed}")
        scored[name, seed] = notebook.part(f"infilling-{share:g}-{name}-seed{seed}", made_from, compute)
    return scored


def _mean(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every score as a mean over seeds and images, with its interval over images."""
    return {
        name: summary(mean_of([one[name]["per_image"] for one in scores]))
        for name, score in scores[0].items()
        if isinstance(score, dict)  # not what the notebook adds
    }


def _paired(parts: dict[tuple[str, int], dict[str, Any]], seeds: Sequence[int], other: str) -> dict[str, Any]:
    """Row g minus another, caption by caption, see `compare_rows`; "mean" is the difference."""

    def of(row: str, name: str) -> dict[int, list[float]]:
        return {seed: parts[row, seed][name]["per_image"] for seed in seeds}

    found = {name: compare_rows(of("g", name), of(other, name)) for name in ("whole", "blanks", "exact")}
    return {name: {"mean": one["difference"], **one} for name, one in found.items()}
