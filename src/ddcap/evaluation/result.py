"""The result of an evaluation, human captions beside it: for people as text, for programs as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddcap.evaluation.hallucination import Inventions
from ddcap.evaluation.metrics import Scores
from ddcap.evaluation.slips import Slips
from ddcap.evaluation.tokenization import tokenize
from ddcap.files import write_json

# What scores do not show: how long and how varied captions are, how often they repeat or are copied.

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Diagnostics:
    """Properties of a set of captions; words are those of the Python PTB tokenisation, without punctuation.

    Attributes:
        captions: number of captions.
        lengths: number of words to number of captions.
        distinct_words: number of different words used.
        copied: share of captions that are, word for word, one of the training captions; None without these.
        empty: share without a single word.
        repeated_word: share with a word right after itself ("a a dog").
        repeated_bigram: share in which two words in a row occur again ("a dog and a dog").
        slips: shares with slips of English.
    """

    captions: int
    lengths: dict[int, int]
    distinct_words: int
    copied: float | None
    empty: float
    repeated_word: float
    repeated_bigram: float
    slips: Slips

    @property
    def mean_length(self) -> float:
        """Mean number of words."""
        return sum(length * count for length, count in self.lengths.items()) / self.captions

    def to_dict(self) -> dict[str, Any]:
        """Plain values; shares from 0 to 1."""
        return {
            "mean_length": round(self.mean_length, 2),
            "lengths": {str(length): count for length, count in self.lengths.items()},
            "distinct_words": self.distinct_words,
            "copied_from_training": None if self.copied is None else round(self.copied, 4),
            "empty": round(self.empty, 4),
            "repeated_word": round(self.repeated_word, 4),
            "repeated_bigram": round(self.repeated_bigram, 4),
            "slips": self.slips.to_dict(),
        }

    def to_text(self) -> str:
        """One line."""
        copied = "" if self.copied is None else f"{self.copied:.1%} copied from training, "
        first, last = min(self.lengths), max(self.lengths)
        return (
            f"{self.mean_length:.1f} words ({first} {self._histogram()} {last}), "
            f"{self.distinct_words} distinct, {copied}{self.empty:.1%} empty, "
            f"{self.repeated_word:.1%} repeat a word, {self.repeated_bigram:.1%} a bigram, "
            f"{self.slips.to_text()}"
        )

    def _histogram(self) -> str:
        """A bar for each length from the shortest to the longest."""
        most = max(self.lengths.values())
        counts = [self.lengths.get(length, 0) for length in range(min(self.lengths), max(self.lengths) + 1)]
        return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def diagnose(captions: Iterable[str], training_captions: Iterable[str] = ()) -> Diagnostics:
    """Look at captions (at least one), beside the captions that the model was trained on."""
    captions, training = list(captions), frozenset(_normalized(training_captions))
    texts = _normalized(captions)
    words = [text.split() for text in texts]
    lengths = Counter(map(len, words))

    def share(flags: Iterable[bool]) -> float:
        return sum(flags) / len(texts)

    return Diagnostics(
        captions=len(texts),
        lengths=dict(sorted(lengths.items())),
        distinct_words=len({word for caption in words for word in caption}),
        copied=share(text in training for text in texts) if training else None,
        empty=share(not caption for caption in words),
        repeated_word=share(any(first == second for first, second in pairwise(caption)) for caption in words),
        repeated_bigram=share(max(Counter(pairwise(caption)).values(), default=0) > 1 for caption in words),
        slips=Slips.count(words),
    )


def _normalized(captions: Iterable[str]) -> list[str]:
    """Lower-case words without punctuation, separated by spaces."""
    texts, _ = tokenize({"": list(captions)}, "ptb-python")
    return texts[""]


# Human leave-one-out: what a human caption scores against the others of its image. Image number i of the
# split (from 0) gives reference number i mod R of its R references as the caption and keeps the other R - 1:
# every place in the list is used equally often, and each metric runs once. The number of references matters:
# ROUGE-L, BLEU and METEOR rise with each, so the model is scored against the same R - 1 as well. CIDEr is a
# mean over references and moves little.


@dataclass(frozen=True)
class HumanComparison:
    """People and model, judged alike.

    Attributes:
        scores: of the human captions held out.
        model: of the model's captions against the same references; without the slow metrics.
        references: fewest and most references that an image kept.
        diagnostics: of the human captions.
        inventions: of the human captions held out.
    """

    scores: Scores
    model: Scores
    references: tuple[int, int]
    diagnostics: Diagnostics
    inventions: Inventions

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
            "inventions": self.inventions.to_dict(),
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


# What an evaluation found: for people as text, for programs and comparisons as JSON.


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        scores: the metrics.
        predictions: image id to caption.
        split: name of the split.
        split_images: number of images of the whole split.
        references_digest: the same for the same references of the split.
        diagnostics: of the predictions.
        inventions: what the predictions name that nobody sees.
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
    inventions: Inventions
    human: HumanComparison | None = None
    clip: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "metrics": self.scores.rounded(),
            "intervals_95": self.scores.rounded_intervals(),
            "not_run": self.scores.not_run,
            "human": None if self.human is None else self.human.to_dict(),
            "diagnostics": self.diagnostics.to_dict(),
            "inventions": self.inventions.to_dict(),
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
        """Return what `--output` keeps: also the scores of every image and the predictions."""
        per_image = {"image_ids": self.scores.image_ids, **self.scores.per_image}
        return {
            **self.to_dict(),
            "per_image": per_image,
            "weights": self.scores.weights,
            "predictions": self.predictions,
        }

    def to_text(self) -> str:
        """Return the text that people read."""
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
        lines.append(self.inventions.to_text(human.inventions if human else None))
        lines.extend(f"not captioned: {reason}" for reason in self.failed.values())
        return "\n".join(lines)


def save_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write `evaluation` with its scores per image and its predictions, for comparisons."""
    write_json(path, evaluation.to_record())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
