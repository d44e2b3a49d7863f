"""What an evaluation found: for people as text, for programs and comparisons as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddcap.evaluation.diagnostics import Diagnostics
from ddcap.evaluation.human import HumanComparison
from ddcap.evaluation.json_file import write_json
from ddcap.evaluation.metrics import Scores


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: the metrics.
        predictions: image id to caption.
        split: name of the split.
        split_images: number of images of the whole split.
        references_digest: the same for the same references of the split.
        diagnostics: of the predictions.
        human: people under the same metrics; None if not asked for, or no image has two references.
        clip: folder or Hub id of the CLIP behind CLIPScore, if one was given.
        failed: image id to the reason there is no caption.
        decoding: the decoding settings used, as plain values; empty if the captions come from elsewhere.
    """

    scores: Scores
    predictions: dict[str, str]
    split: str
    split_images: int
    references_digest: str
    diagnostics: Diagnostics
    human: HumanComparison | None = None
    clip: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "metrics": self.scores.rounded(),
            "intervals_95": self.scores.rounded_intervals(),
            "not_run": self.scores.not_run,
            "human": None if self.human is None else self.human.to_dict(),
            "diagnostics": self.diagnostics.to_dict(),
            "images": len(self.predictions),
            "failed": self.failed,
            "split": self.split,
            "split_images": self.split_images,
            "tokenization": self.scores.tokenization,
            "idf": self.scores.document_frequencies.summary(),
            "references": self.references_digest,
            "clip": self.clip,
            "decoding": self.decoding,
        }

    def to_record(self) -> dict[str, Any]:
        """What `--output` keeps: also the scores of every image and the predictions."""
        per_image = {"image_ids": self.scores.image_ids, **self.scores.per_image}
        return {**self.to_dict(), "per_image": per_image, "predictions": self.predictions}

    def to_text(self) -> str:
        """What people read."""
        scores, human = self.scores, self.human
        head = f"{'':<12} {'score':>6} {'95 % interval':>15}"
        lines = [head + (f" {'human':>7} {'alike':>7}" if human else "")]
        for name, value in scores.metrics.items():
            low, high = scores.intervals.get(name, (None, None))
            interval = "" if low is None else f"[{low:.1f}, {high:.1f}]"
            line = f"{name:<12} {value:6.1f} {interval:>15}"
            if human:
                line += "".join(
                    f" {_number(part.metrics.get(name)):>7}" for part in (human.scores, human.model)
                )
            lines.append(line.rstrip())
        lines.extend(f"{name:<12} not run: {reason}" for name, reason in scores.not_run.items())
        part = "" if len(self.predictions) == self.split_images else f" of the {self.split_images}"
        lines.append(
            f"{len(self.predictions)}{part} images of split {self.split}, tokenised by "
            f"{scores.tokenization}; CIDEr's idf from "
            f"{scores.document_frequencies.source}; intervals: bootstrap over images"
        )
        if human:
            fewest, most = human.references
            count = str(fewest) if fewest == most else f"{fewest} to {most}"
            lines.append(
                f"human: one reference of each image against its other {count}; "
                f"alike: the model against the same {count}"
            )
        lines.append(f"captions: {self.diagnostics.to_text()}")
        if human:
            lines.append(f"human:    {human.diagnostics.to_text()}")
        lines.extend(f"not captioned: {reason}" for reason in self.failed.values())
        return "\n".join(lines)


def save_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write `evaluation` with its scores per image and its predictions, for comparisons."""
    write_json(path, evaluation.to_record())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
