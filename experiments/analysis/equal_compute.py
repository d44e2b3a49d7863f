"""CIDEr against what decoding computes: what do diffusion and its twin gain from the same work?

Work is counted and not timed, on the first images, one at a time: passes of the decoder one after another,
caption positions that they compute, and operations as PyTorch counts them (two for a multiplication with
its addition; attention's own products are not seen). The image encoder is not part of it: it is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from ddcap.captioner import Captioner
from ddcap.evaluation.metrics import score_captions
from ddcap.evaluation.result import diagnose
from ddcap.settings import DecodingSettings, dump_settings, parse_settings
from experiments.analysis.candidates import CANDIDATES, candidates_of
from experiments.means import summary
from experiments.notebook import Notebook
from experiments.split import Split, caption_split

COUNTED = 25
"""Images that work is counted on."""

GROUPS: dict[str, list[dict[str, Any]]] = {
    "twin": [{"beams": beams} for beams in (1, 2, 3, 5)],
    "twin, other length penalty": [{"beams": 3, "length_penalty": penalty} for penalty in (0.0, 2.0)],
    "g": [{"candidates": count} for count in (1, 2, 3, CANDIDATES)],
    "g, few steps, distinct": [{"steps": steps, "distinct": True} for steps in (3, 5, 8)],
    "g, no guidance": [{"guidance": 1.0, "candidates": count} for count in (1, 2, 3, CANDIDATES)],
    "g, by margin": [{"order": "margin"}, {"order": "margin", "steps": 8, "distinct": True}],
    "g, told the true length": [{}],
    "g, few steps": [{"steps": steps} for steps in (3, 5, 8)],
    "g, no guidance, few steps, distinct": [
        {"guidance": 1.0, "steps": steps, "distinct": True} for steps in (3, 5, 8)
    ],
}
"""What is tried, as changes to a row's own decoding; a group's name begins with the row's."""

TOLD = "g, told the true length"
_PLAIN: dict[str, dict[str, Any]] = {
    "g": {
        "method": "best_first",
        "distinct": False,
        "candidates": 1,
        "steps": None,
        "order": "probability",
        "length": "predicted",
        "length_rule": "argmax",
        "length_penalty": 1.0,
    },
    "twin": {"method": "left_to_right", "beams": 1, "length_penalty": 1.0},
}


def plain_decoding(captioner: Captioner, row: str) -> DecodingSettings:
    """The row's own decoding; models keep that of whichever row their training ended with."""
    settings: DecodingSettings = parse_settings(
        DecodingSettings, {**dump_settings(captioner.decoding), **_PLAIN[row]}, f"row {row}"
    )
    return settings


def equal_compute(
    captioners: dict[str, Captioner], split: Split, notebook: Notebook, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every group's points: settings, CIDEr, its paired difference to the greedy twin, repeats and work.

    Args:
        captioners: row "g" and its "twin".
        split: of the images.
        notebook: holds what is finished.
        say: is told what begins.
    """
    found = {
        name: [
            _point(captioners, name, settings, changes, split, notebook, say)
            for settings, changes in _settings(captioners, name)
        ]
        for name in GROUPS
    }
    greedy = found["twin"][0]["per_image"]
    for points in found.values():
        for point in points:
            paired = [own - other for own, other in zip(point.pop("per_image"), greedy, strict=True)]
            point["minus_greedy_twin"] = summary(paired)
            point.pop("made_from")
    return {"pictures": len(split.records), "counted_on": min(COUNTED, len(split.records)), "groups": found}


def _settings(
    captioners: dict[str, Captioner], name: str
) -> Iterator[tuple[DecodingSettings, dict[str, Any]]]:
    row = name.partition(",")[0]
    plain = dump_settings(plain_decoding(captioners[row], row))
    for changes in GROUPS[name]:
        yield parse_settings(DecodingSettings, {**plain, **changes}, name), changes


def _point(
    captioners: dict[str, Captioner],
    name: str,
    settings: DecodingSettings,
    changes: dict[str, Any],
    split: Split,
    notebook: Notebook,
    say: Callable[[str], None],
) -> dict[str, Any]:
    captioner = captioners[name.partition(",")[0]]
    told = name == TOLD
    label = "-".join([name.replace(", ", "-").replace(" ", "_"), *map(str, changes.values())])

    def captions() -> dict[str, str]:
        if "candidates" not in changes:
            return caption_split(captioner, split, settings, true_lengths=told)
        found = candidates_of(captioner, split, replace(settings, candidates=1), notebook, say)
        best = found.likeliest(settings.candidates).tolist()
        texts = found.texts(captioner.tokenizer)
        return {
            record.image_id: own[place] for record, own, place in zip(split.records, texts, best, strict=True)
        }

    def compute() -> dict[str, Any]:
        say(f"decoding: {name} {changes}")
        decoded = captions()
        scores = score_captions(decoded, split.references)
        looked_at = diagnose(decoded.values())
        return {
            "changes": changes,
            "CIDEr": scores.metrics["CIDEr"],
            "interval_95": list(scores.intervals["CIDEr"]),
            "repeated_word": looked_at.repeated_word,
            "words": looked_at.mean_length,
            **work_of(captioner, split, settings, true_lengths=told),
            "per_image": scores.per_image["CIDEr"],
        }

    made_from = [dump_settings(settings), told, COUNTED, split.name, len(split.records)]
    return notebook.part(f"compute-{label}", made_from, compute)


def work_of(
    captioner: Captioner, split: Split, settings: DecodingSettings, *, true_lengths: bool = False
) -> dict[str, float]:
    """Passes, positions and operations for one image, the mean of the first COUNTED, one at a time."""
    model = copy.deepcopy(captioner.model).requires_grad_(False)  # the counter would ask for gradients
    counted = Captioner(model, captioner.tokenizer)
    part = replace(split, records=split.records[:COUNTED])
    sizes: list[int] = []
    decoder = model.denoiser if model.config.model.kind == "diffusion" else model.decoder
    decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0] * inputs[0].shape[1]))
    with FlopCounterMode(display=False) as counter:
        caption_split(counted, part, settings, true_lengths=true_lengths, at_once=1)
    images = len(part.records)
    return {
        "passes": len(sizes) / images,
        "positions": sum(sizes) / images,
        "operations": counter.get_total_flops() / images,
    }
