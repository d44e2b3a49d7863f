"""One setting varied, all else as it is: CIDEr on val, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ddcap.captioner import Captioner
from ddcap.evaluation.metrics import score_captions
from ddcap.settings import DecodingSettings, dump_settings, parse_settings
from experiments.notebook import Notebook
from experiments.plan import Plan, Trial, training_settings
from experiments.split import Split, caption_split
from experiments.trainings import trained


def score_point(
    captioner: Captioner, split: Split, settings: DecodingSettings, *, true_lengths: bool = False
) -> dict[str, Any]:
    """CIDEr, its interval and the mean number of words, for one setting."""
    captions = caption_split(captioner, split, settings, true_lengths=true_lengths)
    scores = score_captions(captions, split.references)
    return {
        "CIDEr": scores.metrics["CIDEr"],
        "interval_95": list(scores.intervals["CIDEr"]),
        "BLEU-4": scores.metrics["BLEU-4"],
        "words": sum(len(text.split()) for text in captions.values()) / len(captions),
    }


def decoding_sweep(
    plan: Plan,
    name: str,
    values: Sequence[float],
    split: Split,
    notebook: Notebook,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One decoding setting of row g's first seed at each of `values`.

    The sweep "length" also holds the lengths that are not one number: predicted, expected, true.
    """
    trial = plan.named("g")[0]
    base = dump_settings(trial.recipe.decoding)
    points = []
    for label, changes, true_lengths in _variants(name, values):
        settings = parse_settings(DecodingSettings, {**base, **changes}, f"sweep {name}")

        def compute(
            settings: DecodingSettings = settings, true_lengths: bool = true_lengths
        ) -> dict[str, Any]:
            captioner = trained(trial, say, split.device)
            return score_point(captioner, split, settings, true_lengths=true_lengths)

        made_from = [
            training_settings(trial.recipe),
            dump_settings(settings),
            true_lengths,
            split.name,
            len(split.records),
        ]
        say(f"sweep {name}: {label}")
        points.append({"value": label, **notebook.part(f"sweep-{name}-{label}", made_from, compute)})
    return points


def training_sweep(
    trials: Sequence[Trial], split: Split, notebook: Notebook, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One score for each of the trainings of a sweep."""
    points = []
    for trial in trials:

        def compute(trial: Trial = trial) -> dict[str, Any]:
            return score_point(trained(trial, say, split.device), split, trial.recipe.decoding)

        made_from = [
            training_settings(trial.recipe),
            dump_settings(trial.recipe.decoding),
            split.name,
            len(split.records),
        ]
        say(f"sweep {trial.label}")
        value = trial.name.rpartition("-")[2]
        points.append({"value": value, **notebook.part(f"sweep-{trial.label}", made_from, compute)})
    return points


def _variants(name: str, values: Sequence[float]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Label, changed settings, and whether the true lengths are given."""
    for value in values:
        number = int(value) if float(value).is_integer() and name != "guidance" else value
        yield f"{number:g}", {name: number}, False
    if name == "length":
        yield "predicted", {"length": "predicted", "length_rule": "argmax"}, False
        yield "expected", {"length": "predicted", "length_rule": "expected"}, False
        yield "true", {"length": "predicted"}, True
