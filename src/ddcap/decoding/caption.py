"""Results of a captioner: captions, concepts, and errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddcap.arrays import to_host
from ddcap.data.concepts import NO_CONCEPT, ConceptVocabulary
from ddcap.data.images import ImageSource
from ddcap.data.persons import Persons
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.trace import DecodingResult, Trace, build_trace
from ddcap.model.features import ImageFeatures
from ddcap.values import as_share


@dataclass(frozen=True)
class Caption:
    """One caption, with its confidence and its trace.

    Attributes:
        text: the caption as text.
        tokens: printable pieces, one per token; a leading space starts a word; the end token is "".
        confidences: probability of each token when it was committed; 1 for given words.
        length: number of tokens, end token included.
        score: mean log-probability of the tokens, to compare captions of one image.
        trace: the tokens that each step committed.
        sure: probability of a CIDEr above the median human caption's; None if the model is not calibrated.
        faithful: probability that the caption names nothing that no person would have named.
        known: probability that the model knows this kind of image.
        doubtful: words that under 30 % of annotators would use.
    """

    text: str
    tokens: tuple[str, ...]
    confidences: tuple[float, ...]
    length: int
    score: float
    trace: Trace
    sure: float | None = None
    faithful: float | None = None
    known: float | None = None
    doubtful: tuple[str, ...] = ()

    @property
    def why_not(self) -> str | None:
        """The reason if the caption is no more than a guess, else None."""
        if self.known is None or self.known >= 0.5:
            return None
        return "only a guess: the model has not seen images like this"


@dataclass(frozen=True)
class Concept:
    """A concept that the model sees in an image, with the probability that a person would mention it."""

    word: str
    confidence: float


@dataclass(frozen=True)
class PersonsSeen:
    """A detector's findings on the persons in an image.

    Attributes:
        probability: that a person would mention a person.
        count: how many it finds.
        place: where the largest is: "left", "centre" or "right"; None of none.
    """

    probability: float
    count: int
    place: str | None

    @classmethod
    def of(cls, persons: Persons, image: int) -> PersonsSeen:
        """Those of one of the images."""
        probability, count, centre = (
            to_host(part)[image].item() for part in (persons.probability, persons.count, persons.place)
        )
        place = ("left", "centre", "right")[min(max(int(3 * centre), 0), 2)]
        return cls(probability, count, place if count else None)

    @property
    def text(self) -> str:
        """In words: "none", "1, centre", "2, the largest left", "several, the largest right"."""
        if self.count < 2:
            return f"1, {self.place}" if self.count else "none"
        return f"{'2' if self.count == 2 else 'several'}, the largest {self.place}"


def what_is_seen(
    features: ImageFeatures, vocabulary: ConceptVocabulary
) -> tuple[list[Concept], PersonsSeen | None]:
    """The concepts of the first image, surest first; and its persons, if a detector has looked."""
    seen, persons = features.concepts, features.persons
    assert seen is not None
    pairs = zip(to_host(seen.ids)[0].tolist(), to_host(seen.confidences)[0].tolist(), strict=True)
    listed = [Concept(vocabulary.words[number], share) for number, share in pairs if number != NO_CONCEPT]
    return listed, None if persons is None else PersonsSeen.of(persons, 0)


@dataclass(frozen=True)
class ImageResult:
    """The result for one image: its captions or an error.

    Attributes:
        source: the image, as given.
        captions: captions of the image; empty if there is an error.
        error: why there are no captions; None if there are some.
        asked: how many captions were asked for; there are fewer where fewer different ones fit.
    """

    source: ImageSource
    captions: tuple[Caption, ...]
    error: str | None
    asked: int = 1

    def withheld(self, min_sure: float | None) -> str | None:
        """The reason to withhold the caption, or None. Without `min_sure`, only an error is one.

        Raises:
            DDCapError: if `min_sure` is no number from 0 to 1.
        """
        if self.error is not None:
            return self.error
        best = self.captions[0]
        min_sure = None if min_sure is None else as_share("min_sure", min_sure)
        if min_sure is None or best.sure is None or best.sure >= min_sure:
            return None
        return best.why_not or f"sure {best.sure:.2f} is below {min_sure:g}"


# What programs read of results, as plain values.


def answer_of(result: ImageResult, min_sure: float | None = None) -> dict[str, Any]:
    """Describe the result of an image: its likeliest caption and how sure it is, or why there is none."""
    if result.error is not None:
        return {"error": result.error}
    best = result.captions[0]
    answer = {"caption": best.text, **confidence_of(best), **withheld_of(result, min_sure)}
    if result.asked > 1:
        answer["captions"] = [caption.text for caption in result.captions]
    return answer


def withheld_of(result: ImageResult, min_sure: float | None) -> dict[str, Any]:
    """In place of a caption that is not sure enough: none, a guess and the reason; nothing if it is."""
    why = result.withheld(min_sure)
    return {} if why is None else {"caption": None, "guess": result.captions[0].text, "why": why}


def confidence_of(caption: Caption) -> dict[str, Any]:
    """Return the confidence of a caption, as programs read it; empty for a model without calibration."""
    if caption.sure is None or caption.faithful is None or caption.known is None:
        return {}
    chances = {name: round(getattr(caption, name), 4) for name in ("sure", "faithful", "known")}
    return {**chances, "doubtful": list(caption.doubtful)}


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
                trace=build_trace(result, row, pieces_of, tokenizer.mask_id),
            )
        )
    return captions
