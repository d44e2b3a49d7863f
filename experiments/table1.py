"""Table 1: every row from every seed, scored on test; the paper's claims against paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddcap.data.records import load_karpathy
from ddcap.evaluation.metrics import bootstrap_interval
from ddcap.evaluation.result import leave_one_out
from ddcap.evaluation.run import ScoringSettings, score_predictions
from ddcap.recipe import Recipe
from ddcap.settings import DecodingSettings, dump_settings, parse_settings
from experiments.difference import compare_rows
from experiments.means import mean_of, summary
from experiments.notebook import Notebook
from experiments.nouns import KINDS, known, nouns_of_row
from experiments.paper import CLAIMS
from experiments.plan import Plan, Trial, training_settings
from experiments.split import Split, caption_split
from experiments.trainings import trained

TWIN, TWIN_BEAMS = "twin", "twin_beams"
Decodings = dict[tuple[str, int], tuple[Trial, DecodingSettings]]
Scored = dict[tuple[str, int], dict[str, Any]]


def decodings_of(plan: Plan) -> Decodings:
    """(row, seed) to its trial and decoding; the twin has a second row with several beams."""
    decodings: Decodings = {(one.name, one.seed): (one, one.recipe.decoding) for one in plan.rows}
    for one in plan.named(TWIN):
        decodings[TWIN_BEAMS, one.seed] = (one, with_beams(one, plan))
    return decodings


def with_beams(trial: Trial, plan: Plan) -> DecodingSettings:
    """Settings of a twin decoded with the plan's number of beams."""
    beams = {**dump_settings(trial.recipe.decoding), "beams": plan.file.beams}
    settings: DecodingSettings = parse_settings(DecodingSettings, beams, "plan")
    return settings


def score_row(
    decoding: tuple[Trial, DecodingSettings],
    split: Split,
    notebook: Notebook,
    say: Callable[[str], None],
    *,
    fast: bool = False,
) -> dict[str, Any]:
    """Score like `ddcap evaluate --output`, for one row and seed; `fast` without METEOR and SPICE."""
    trial, settings = decoding
    name = f"{trial.name}_beams" if settings.beams > 1 else trial.name

    def compute() -> dict[str, Any]:
        captions = caption_split(trained(trial, say, split.device), split, settings, seed=trial.seed)
        data = trial.recipe.data
        root = Path(data.root)
        training = load_karpathy(root / data.json, root / data.images, "train")
        evaluation = score_predictions(
            captions,
            split.records,
            ScoringSettings(fast=fast, human=False),
            training_captions=[caption for record in training for caption in record.captions],
            decoding=dump_settings(settings),
        )
        return evaluation.to_record()

    made_from = [
        training_settings(trial.recipe),
        dump_settings(settings),
        split.name,
        len(split.records),
        fast,
    ]
    say(f"row {name}, seed {trial.seed}")
    return notebook.part(f"{name}-seed{trial.seed}", made_from, compute)


def score_humans(split: Split, notebook: Notebook, *, fast: bool = False) -> dict[str, Any]:
    """Human leave-one-out on the split, see `evaluation.human`."""
    held_out, rest = leave_one_out(split.references)

    def compute() -> dict[str, Any]:
        human = score_predictions(held_out, split.records, ScoringSettings(fast=fast)).human
        return {} if human is None else human.to_dict()

    made_from = ["human", split.name, len(split.records), fast]
    content = notebook.part("human", made_from, compute)
    if not held_out:
        return content
    nouns = nouns_of_row("human", held_out, rest, notebook)
    return {**content, "nouns": {kind: summary(known(nouns[kind])) for kind in KINDS}}


def designs(recipe: Recipe) -> dict[str, bool]:
    """List which of the paper's special designs a recipe has on, by their names in Table 1."""
    decoding = recipe.decoding
    return {
        "best-first": decoding.method == "best_first",
        "CAM": recipe.model.concentrated_attention,
        "length": recipe.model.length_prediction and decoding.length == "predicted",
        "image-free": recipe.training.image_free_probability > 0,
    }


def gather_rows(plan: Plan, rows: Scored) -> dict[str, Any]:
    """Per row: designs, every seed's metrics, their means, CIDEr's interval over images."""
    gathered: dict[str, Any] = {}
    recipes = {one.name: one.recipe for one in plan.rows}
    for name in dict.fromkeys(name for name, _ in rows):
        seeds = {seed: content for (row, seed), content in rows.items() if row == name}
        metrics = [content["metrics"] for content in seeds.values()]
        shared = [key for key in metrics[0] if all(key in one for one in metrics)]
        gathered[name] = {
            "designs": designs(recipes[TWIN if name == TWIN_BEAMS else name]),
            "seeds": {str(seed): content["metrics"] for seed, content in seeds.items()},
            "mean": {key: sum(one[key] for one in metrics) / len(metrics) for key in shared},
            "interval_95": bootstrap_interval(_mean_per_image(list(seeds.values()))),
            "not_run": next(iter(seeds.values()))["not_run"],
            "diagnostics": next(iter(seeds.values()))["diagnostics"],
            "nouns": {
                kind: summary(mean_of([known(content["nouns"][kind]) for content in seeds.values()]))
                for kind in KINDS
            },
        }
    return gathered


def _mean_per_image(contents: Sequence[dict[str, Any]]) -> list[float]:
    """CIDEr of every image, averaged over seeds."""
    return mean_of([content["per_image"]["CIDEr"] for content in contents])


def check_claims(rows: Scored, plan: Plan) -> list[dict[str, Any]]:
    """Each claim of the paper and of the plan against our paired difference; `verdict.settle` judges it."""
    outputs = {row: trial.recipe.training.output for row, (trial, _) in decodings_of(plan).items()}
    checked = []
    for better, worse, what in claims_of(plan):
        seeds = [
            {seed: content for (row, seed), content in rows.items() if row == name}
            for name in (better, worse)
        ]
        if not all(seeds):
            continue
        ciders = [{seed: one["per_image"]["CIDEr"] for seed, one in row.items()} for row in seeds]
        shared = [seed for seed in seeds[0] if seed in seeds[1]]
        same_trainings = bool(shared) and all(outputs[better, one] == outputs[worse, one] for one in shared)
        nouns = {
            kind: compare_rows(
                *({seed: known(one["nouns"][kind]) for seed, one in row.items()} for row in seeds),
                same_trainings=same_trainings,
            )
            for kind in KINDS
        }
        checked.append(
            {
                "better": better,
                "worse": worse,
                "what": what,
                **compare_rows(*ciders, same_trainings=same_trainings),
                "nouns": {
                    kind: {name: found[name] for name in ("difference", "interval_95", "interval_95_seeds")}
                    for kind, found in nouns.items()
                },
            }
        )
    return checked


def claims_of(plan: Plan) -> list[tuple[str, str, str]]:
    """(better, worse, what): the paper's, its last also with the twin's beams, then the plan's own."""
    claims = {(claim.better, claim.worse): claim.what for claim in CLAIMS}
    claims |= {
        (better, TWIN_BEAMS): f"{what}, decoded with beams"
        for (better, worse), what in claims.items()
        if worse == TWIN
    }
    claims |= {(better, worse): what for better, worse, what in plan.file.claims}
    return [(better, worse, what) for (better, worse), what in claims.items()]
