"""Human leave-one-out: what a human caption scores against the others of its image.

Image number i of the split (from 0) gives reference number i mod R of its R references as the caption and
keeps the other R - 1: every place in the list is used equally often, and each metric runs once. The number of
references matters: ROUGE-L, BLEU and METEOR rise with each, so the model is scored against the same R - 1 as
well. CIDEr is a mean over references and moves little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddcap.evaluation.diagnostics import Diagnostics
from ddcap.evaluation.metrics import Scores


@dataclass(frozen=True)
class HumanComparison:
    """People and model, judged alike.

    Attributes:
        scores: of the human captions held out.
        model: of the model's captions against the same references; without the slow metrics.
        references: fewest and most references that an image kept.
        diagnostics: of the human captions.
    """

    scores: Scores
    model: Scores
    references: tuple[int, int]
    diagnostics: Diagnostics

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "metrics": self.scores.rounded(),
            "intervals_95": self.scores.rounded_intervals(),
            "model_with_the_same_references": self.model.rounded(),
            "references": list(self.references),
            "images": len(self.scores.image_ids),
            "not_run": self.scores.not_run,
            "diagnostics": self.diagnostics.to_dict(),
        }


def leave_one_out(
    references: Mapping[str, Sequence[str]],
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """One human caption per image, and the image's others; an image with a single reference is left out.

    Args:
        references: image id to human captions, of the whole split.

    Returns:
        Image id to the caption held out, image id to the rest.
    """
    captions: dict[str, str] = {}
    rest: dict[str, list[str]] = {}
    for number, (image, texts) in enumerate(references.items()):
        if len(texts) > 1:
            out = number % len(texts)
            captions[image] = texts[out]
            rest[image] = [text for place, text in enumerate(texts) if place != out]
    return captions, rest
