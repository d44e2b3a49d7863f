"""CIDEr-D, BLEU-1 to 4 and ROUGE-L by `pycocoevalcap`, the stack behind every published number."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.errors import DataError, DDCapError, MissingExtraError
from ddcap.evaluation.tokenization import Tokenization, tokenize_with_references
from ddcap.files import read_json, write_json

# How certain a score is: percentile bootstrap over images, for metrics that are a mean over images.

SAMPLES = 2000


def bootstrap_interval(
    values: Sequence[float],
    level: float = 0.95,
    seed: int = 0,
    *,
    weights: Sequence[float] | None = None,
) -> tuple[float, float]:
    """Interval of the mean of `values` when images are drawn with replacement.

    Args:
        values: one score per image.
        level: share of the resampled means inside the interval.
        seed: of the resampling.
        weights: one per image, for a weighted mean.

    Returns:
        Lower and upper end.
    """
    return percentile_interval(resampled_means(values, weights, seed), level)


def percentile_interval(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Ends between which the share `level` of resampled values lies."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(
    values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> np.ndarray:
    """Means of `SAMPLES` draws with replacement, the same draws for as many images and the same seed.

    Args:
        values: one score per image.
        weights: one per image, for a weighted mean; a draw of no weight has mean 0.
        seed: of the resampling.
    """
    scores = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(scores), size=(SAMPLES, len(scores)))
    if weights is None:
        return scores[drawn].mean(axis=1)
    heavy = np.asarray(weights, dtype=np.float64)
    sums, totals = (scores * heavy)[drawn].sum(axis=1), heavy[drawn].sum(axis=1)
    return np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)


# In how many images' references each n-gram occurs: what CIDEr weighs n-grams by, kept in a file of its own.
# Source: Vedantam et al., CIDEr (2015), equation 1. The same captions score differently under other
# frequencies, so those of the whole split are used for its subsets too.

_FORMAT, _VERSION = "ddcap document frequencies", 1


@dataclass(frozen=True)
class DocumentFrequencies:
    """Document frequencies of n-grams of one to four tokenised words.

    Attributes:
        counts: n-gram to the number of images with a reference that holds it; 0 for all others.
        images: number of images counted.
        source: whose references these are, for people to read.
    """

    counts: Counter[tuple[str, ...]]
    images: int
    source: str

    @classmethod
    def count(cls, references: Mapping[str, Sequence[str]], source: str) -> DocumentFrequencies:
        """Count the tokenised `references` (image id to captions), as pycocoevalcap does.

        Raises:
            MissingExtraError: if pycocoevalcap is not installed.
        """
        try:
            from pycocoevalcap.cider.cider_scorer import CiderScorer
        except ImportError:
            raise MissingExtraError("scoring captions", "eval") from None
        scorer = CiderScorer()
        for captions in references.values():
            scorer += (None, list(captions))
        scorer.compute_doc_freq()
        counts = {ngram: int(count) for ngram, count in scorer.document_frequency.items()}
        return cls(Counter(counts), len(references), source)

    @cached_property
    def digest(self) -> str:
        """The same for the same frequencies, whatever they are called."""
        lines = sorted(f"{' '.join(ngram)}\t{count}" for ngram, count in self.counts.items())
        return hashlib.sha256("\n".join([str(self.images), *lines]).encode()).hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Summarise the frequencies for a result."""
        return {"source": self.source, "images": self.images, "digest": self.digest}

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `load` reads.

        Raises:
            DataError: if it cannot be written.
        """
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "source": self.source,
            "images": self.images,
            "document_frequencies": {" ".join(ngram): count for ngram, count in sorted(self.counts.items())},
        }
        write_json(path, content, indent=0)

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read what `save` wrote.

        Raises:
            DataError: if the file is missing or something else.
        """
        remedy = "give a file written with --save-idf"
        content = read_json(path, remedy)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"{path}: contains no document frequencies; {remedy}")
        if content.get("version") != _VERSION:
            raise DataError(
                f"{path}: has version {content.get('version')!r}, but this ddcap reads {_VERSION}; write "
                "it again"
            )
        counts, images = content.get("document_frequencies"), content.get("images")
        if (
            not isinstance(images, int)
            or not isinstance(counts, dict)
            or not _whole([images, *counts.values()])
        ):
            raise DataError(f"{path}: its counts are damaged; write it again with --save-idf")
        return cls(
            Counter({tuple(ngram.split(" ")): count for ngram, count in counts.items()}),
            images,
            str(content.get("source", path)),
        )


def _whole(values: Any) -> bool:
    return all(type(value) is int and value > 0 for value in values)


@dataclass(frozen=True)
class MetricScore:
    """Score of one metric, not yet times 100.

    Attributes:
        value: of the whole.
        per_image: in the order of the captions; None if `value` is not their mean.
        weights: of the images, where `value` is a weighted mean.
    """

    value: float
    per_image: list[float] | None = None
    weights: list[float] | None = None


Metric = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], dict[str, MetricScore]]
"""(tokenised captions, tokenised references) to scores by name; a DDCapError where it cannot be run."""


@dataclass(frozen=True)
class Scores:
    """Scores of one system on one split.

    Attributes:
        metrics: name to score, times 100 as in the literature.
        per_image: name to the score of every image (times 100), in the order of `image_ids`; only for metrics
            that are a mean over images.
        image_ids: of the scored images.
        tokenization: which tokenisation was used.
        document_frequencies: what CIDEr weighed n-grams by.
        not_run: name of a metric to the reason why it has no score.
        weights: name to the weight of every image, of the metrics that are a weighted mean.
    """

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    image_ids: list[str]
    tokenization: Tokenization
    document_frequencies: DocumentFrequencies
    not_run: dict[str, str] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap interval over images, of the metrics that are a mean over images."""
        return {
            name: bootstrap_interval(values, weights=self.weights.get(name))
            for name, values in self.per_image.items()
        }

    def rounded(self) -> dict[str, float]:
        """The metrics as they are written to JSON."""
        return {name: round(value, 3) for name, value in self.metrics.items()}

    def rounded_intervals(self) -> dict[str, list[float]]:
        """The intervals as they are written to JSON."""
        return {name: [round(end, 2) for end in ends] for name, ends in self.intervals.items()}


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    tokenization: Tokenization | None = None,
    *,
    document_frequencies: DocumentFrequencies | None = None,
    others: Mapping[str, Metric] | None = None,
) -> Scores:
    """Score one caption per image against its references.

    Args:
        predictions: image id to caption.
        references: image id to human captions; must cover the predictions.
        tokenization: see `tokenization.tokenize`.
        document_frequencies: for CIDEr; None counts the references of the predicted images.
        others: further metrics by name, slow ones or such as need more than captions; one that cannot be run
            (a DDCapError) is named in `not_run`, and the rest goes on.

    Raises:
        DataError: if there is nothing to score, or a prediction has no references.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    check_covered(predictions, references)
    of_predicted = {image: references[image] for image in predictions}
    captions, truth, used = tokenize_with_references(predictions, of_predicted, tokenization)
    return score_tokenized(
        captions,
        truth,
        used,
        document_frequencies=document_frequencies,
        others=others,
    )


def check_covered(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """See that there are predictions, and references for each.

    Raises:
        DataError: if not.
    """
    if not predictions:
        raise DataError("there are no predictions; give at least one caption to score")
    lonely = [image for image in predictions if not references.get(image)]
    if lonely:
        raise DataError(
            f"image {lonely[0]!r} has a prediction but no reference captions; score the split that it "
            "belongs to"
        )


def score_tokenized(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    tokenization: Tokenization,
    *,
    document_frequencies: DocumentFrequencies | None = None,
    others: Mapping[str, Metric] | None = None,
) -> Scores:
    """Score captions and references that are tokenised already; see `score_captions`."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise MissingExtraError("scoring captions", "eval") from None
    truth = {image: list(references[image]) for image in captions}
    guess = {image: [caption] for image, caption in captions.items()}
    frequencies = document_frequencies or DocumentFrequencies.count(truth, "the evaluated images")
    found = {"CIDEr": score_cider(truth, guess, frequencies)}
    # the scorers walk the images in the order of the reference dictionary
    rouge, each_rouge = Rouge().compute_score(truth, guess)
    found["ROUGE-L"] = MetricScore(float(rouge), [float(value) for value in each_rouge])
    bleu, _ = Bleu(4).compute_score(truth, guess, verbose=0)
    found.update({f"BLEU-{n}": MetricScore(float(value)) for n, value in enumerate(bleu, start=1)})
    not_run: dict[str, str] = {}
    for name, metric in (others or {}).items():
        try:
            found.update(metric(captions, truth))
        except DDCapError as error:  # what a metric foresees; a mistake in its code is not to be hidden
            not_run[name] = str(error).splitlines()[0]
    return Scores(
        metrics={name: 100 * score.value for name, score in found.items()},
        per_image={
            name: [100 * value for value in score.per_image]
            for name, score in found.items()
            if score.per_image is not None
        },
        image_ids=list(captions),
        tokenization=tokenization,
        document_frequencies=frequencies,
        not_run=not_run,
        weights={name: score.weights for name, score in found.items() if score.weights is not None},
    )


def score_cider(
    truth: Mapping[str, Sequence[str]], guess: Mapping[str, Sequence[str]], frequencies: DocumentFrequencies
) -> MetricScore:
    """CIDEr-D by pycocoevalcap's scorer, with given document frequencies.

    Args:
        truth: image id to tokenised references.
        guess: the same ids, in the same order, to one tokenised caption each.
        frequencies: what n-grams are weighed by.

    Raises:
        MissingExtraError: if pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError:
        raise MissingExtraError("scoring captions", "eval") from None

    class Scorer(CiderScorer):
        """The scorer, which would else take the number of scored images for that of counted ones."""

        @property
        def ref_len(self) -> Any:
            return np.log(float(frequencies.images))

        @ref_len.setter
        def ref_len(self, value: Any) -> None:
            pass

    scorer = Scorer()
    for image, captions in truth.items():
        scorer += (guess[image][0], captions)
    scorer.document_frequency = frequencies.counts  # a Counter: 0 for what is not there
    each = scorer.compute_cider()
    return MetricScore(float(np.mean(each)), [float(value) for value in each])
