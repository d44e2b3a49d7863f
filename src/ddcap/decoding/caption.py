"""What a captioner gives back: captions that know how they came about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddcap.data.images import ImageSource
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.trace import DecodingResult, Trace, build_trace


@dataclass(frozen=True)
class Caption:
    """One caption and how it came about.

    Attributes:
        text: what a person reads.
        tokens: printable pieces, one per token, a leading space where a word begins; the end token is "".
        confidences: probability of each token when it was committed; 1 for given words.
        length: tokens, end token included.
        score: mean log-probability of the tokens, to compare captions of one image.
        trace: what was committed when.
    """

    text: str
    tokens: tuple[str, ...]
    confidences: tuple[float, ...]
    length: int
    score: float
    trace: Trace


@dataclass(frozen=True)
class Concept:
    """A word for something that a model sees in an image, and the probability that a person would say it."""

    word: str
    confidence: float


@dataclass(frozen=True)
class ImageResult:
    """What became of one image of a large job: its captions, or why there are none."""

    source: ImageSource
    captions: tuple[Caption, ...]
    error: str | None


def build_captions(result: DecodingResult, rows: Sequence[int], tokenizer: CaptionTokenizer) -> list[Caption]:
    """The captions `rows` of a decoded batch."""
    result = result.on_host()
    ids = np.unique(result.history).tolist()
    pieces_of = dict(zip(ids, tokenizer.pieces(ids), strict=True))
    captions = []
    for row in rows:
        length = int(result.lengths[row])
        tokens = result.tokens[row, :length].tolist()
        confidences = result.confidences[row, :length].tolist()
        captions.append(
            Caption(
                text=tokenizer.decode(tokens),
                tokens=tuple(pieces_of[token] for token in tokens),
                confidences=tuple(confidences),
                length=length,
                score=sum(math.log(max(value, 1e-30)) for value in confidences) / length,
                trace=build_trace(result, row, pieces_of),
            )
        )
    return captions
