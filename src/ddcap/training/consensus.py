"""How much each human caption agrees with the others of its picture.

Five people describe a picture in five ways; what one alone saw is hard to learn from few pictures, and scores
low against the others. Drawing captions by their consensus CIDEr lets a training see more of what they share.
Source: the consensus of Vedantam et al. 2015 (CIDEr); as a weight of training captions, Phan et al. 2017
("Consensus-based sequence training").
"""

from __future__ import annotations

from collections.abc import Sequence

from ddcap.data.karpathy import CaptionedImage
from ddcap.evaluation.document_frequencies import DocumentFrequencies
from ddcap.evaluation.metrics import score_cider
from ddcap.evaluation.tokenization import tokenize


def consensus(records: Sequence[CaptionedImage]) -> list[list[float]]:
    """CIDEr-D (1 for 100) of every caption against its picture's others, in the order of the records.

    That of a picture's only caption is 0.

    Args:
        records: of the training split.

    Raises:
        MissingExtraError: if pycocoevalcap is not installed.
    """
    plain, _ = tokenize({str(number): record.captions for number, record in enumerate(records)}, "ptb-python")
    frequencies = DocumentFrequencies.count(plain, "the training split")
    guesses, truth = {}, {}
    for picture, captions in plain.items():
        for number, caption in enumerate(captions if len(captions) > 1 else []):
            guesses[f"{picture}/{number}"] = [caption]
            truth[f"{picture}/{number}"] = [*captions[:number], *captions[number + 1 :]]
    scores = score_cider(truth, guesses, frequencies).per_image if truth else None
    score_of = dict(zip(truth, scores or [], strict=True))
    return [
        [score_of.get(f"{picture}/{number}", 0.0) for number in range(len(captions))]
        for picture, captions in plain.items()
    ]
