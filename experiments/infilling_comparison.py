"""Caption infilling by the diffusion model and by its autoregressive twin, on the same blanks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddcap.evaluation.metrics import bootstrap_interval
from ddcap.settings import DecodingSettings, dump_settings
from experiments.infilling import evaluate_infilling
from experiments.notebook import Notebook
from experiments.plan import Plan, Trial, training_settings
from experiments.split import Split
from experiments.table1 import TWIN, TWIN_BEAMS, decodings_of
from experiments.trainings import trained


def compare_infilling(
    plan: Plan, split: Split, notebook: Notebook, say: Callable[[str], None]
) -> dict[str, Any]:
    """Per share of masked words: both models' scores, and the paired differences to the twin."""
    if not plan.named("g") or not plan.named(TWIN):
        return {}
    first_seed = {"g": plan.named("g")[0].seed, **dict.fromkeys((TWIN, TWIN_BEAMS), plan.named(TWIN)[0].seed)}
    systems = {
        name: decoding
        for (name, seed), decoding in decodings_of(plan).items()
        if first_seed.get(name) == seed
    }
    settings = plan.file.infilling
    content: dict[str, Any] = {}
    for share in settings.shares:
        scored = {}
        for name, (trial, decoding) in systems.items():

            def compute(
                trial: Trial = trial, decoding: DecodingSettings = decoding, share: float = share
            ) -> dict[str, Any]:
                captioner = trained(trial, say, split.device)
                return evaluate_infilling(captioner, split, decoding, share, settings.seed).to_dict()

            made_from = [
                training_settings(trial.recipe),
                dump_settings(decoding),
                share,
                settings.seed,
                len(split.records),
            ]
            say(f"infilling {share:.0%}, {name}")
            scored[name] = notebook.part(f"infilling-{share:g}-{name}", made_from, compute)
        content[f"{share:g}"] = {
            **{name: _without_images(scores) for name, scores in scored.items()},
            "g - twin": _paired(scored["g"], scored[TWIN]),
            "g - twin_beams": _paired(scored["g"], scored[TWIN_BEAMS]),
        }
    return content


def _without_images(scores: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"mean": score["mean"], "interval_95": score["interval_95"]}
        for name, score in scores.items()
        if isinstance(score, dict)
    }


def _paired(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    differences = {
        name: [a - b for a, b in zip(ours[name]["per_image"], theirs[name]["per_image"], strict=True)]
        for name in ("whole", "blanks", "exact")
    }
    return {
        name: {"mean": sum(values) / len(values), "interval_95": bootstrap_interval(values)}
        for name, values in differences.items()
    }
