"""CIDEr-D, BLEU-1 to 4 and ROUGE-L by `pycocoevalcap`, the stack behind every published number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddcap.errors import DataError, MissingExtraError
from ddcap.evaluation.tokenization import Tokenization, tokenize


@dataclass(frozen=True)
class Scores:
    """Scores of one system on one split.

    Attributes:
        metrics: name to score, times 100 as in the literature.
        per_image: name to the score of every image (times 100), in the order of `image_ids`; only for metrics
            that are a mean over images.
        image_ids: of the scored images.
        tokenization: which tokenisation was used.
    """

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    image_ids: list[str]
    tokenization: Tokenization


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    tokenization: Tokenization | None = None,
) -> Scores:
    """Score one caption per image against its references, which also give CIDEr's document frequencies.

    Args:
        predictions: image id to caption.
        references: image id to human captions; must cover the predictions.
        tokenization: see `tokenization.tokenize`.

    Raises:
        DataError: if there is nothing to score, or a prediction has no references.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise MissingExtraError("scoring captions", "eval") from None
    if not predictions:
        raise DataError("there are no predictions to score")
    lonely = [image for image in predictions if not references.get(image)]
    if lonely:
        raise DataError(
            f"image {lonely[0]!r} has a prediction but no reference captions; score the split it is from"
        )
    image_ids = list(predictions)
    truth, used = tokenize({image: references[image] for image in image_ids}, tokenization)
    guess, _ = tokenize({image: [predictions[image]] for image in image_ids}, used)
    metrics: dict[str, float] = {}
    per_image: dict[str, list[float]] = {}
    for name, scorer in (("CIDEr", Cider()), ("ROUGE-L", Rouge())):
        mean, each = scorer.compute_score(truth, guess)
        metrics[name] = 100 * float(mean)
        # the scorers walk the images in the order of the reference dictionary
        per_image[name] = [100 * float(value) for value in each]
    corpus_bleu, _ = Bleu(4).compute_score(truth, guess, verbose=0)
    metrics.update({f"BLEU-{n}": 100 * float(value) for n, value in enumerate(corpus_bleu, start=1)})
    return Scores(metrics, per_image, image_ids, used)
