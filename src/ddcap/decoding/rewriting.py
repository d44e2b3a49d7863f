"""Rewriting: blank the words of a caption that the image does not support, then fill the blanks."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.allowed_tokens import Vocabulary
from ddcap.decoding.caption import Caption
from ddcap.decoding.constraints import Constraints, words_of
from ddcap.decoding.finishing import Confident, finish
from ddcap.decoding.infilling import Template, infill
from ddcap.decoding.scoring import CaptionEvidence, Units, WordEvidence, caption_evidence, units_of
from ddcap.decoding.words import FUNCTION_WORDS
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import DenoisingModel
from ddcap.settings import DecodingSettings

LEAST_GAIN = -0.05  # nats that the image has to say for a word, at least


@dataclass(frozen=True)
class Rewriting:
    """A caption before and after rewriting.

    Attributes:
        before: evidence of the given caption.
        doubted: indices of its words that the image does not support.
        after: the new caption; None if no word is doubted, or no other words fit better.
        evidence: evidence of the new caption, or of the given one if there is no new one.
    """

    before: CaptionEvidence
    doubted: tuple[int, ...]
    after: Caption | None
    evidence: CaptionEvidence

    @property
    def text(self) -> str:
        """The caption to use."""
        return self.after.text if self.after is not None else " ".join(one.word for one in self.before.words)

    @property
    def template(self) -> str:
        """The given caption with blanks; adjacent doubted words share one blank."""
        shown = [
            one.word if number not in self.doubted else "___"
            for number, one in enumerate(self.before.words)
            if number not in self.doubted or number - 1 not in self.doubted
        ]
        return " ".join(shown)


def doubtful(words: Sequence[WordEvidence], keep: Collection[str] = ()) -> list[int]:
    """Numbers of the words for which the image says less than `LEAST_GAIN`; not of function words.

    Args:
        words: of a caption.
        keep: words that are not doubted.
    """
    kept = {word for text in keep for word in words_of(text)} | FUNCTION_WORDS
    return [
        number
        for number, one in enumerate(words)
        if one.gain < LEAST_GAIN and not kept & {one.word.lower(), *words_of(one.word)}
    ]


def rewrite(
    model: DenoisingModel,
    features: ImageFeatures,
    text: str,
    settings: DecodingSettings,
    tokenizer: CaptionTokenizer,
    *,
    keep: Collection[str] = (),
    words: tuple[Constraints, Vocabulary] | None = None,
    generator: np.random.Generator | None = None,
    confident: Confident | None = None,
) -> Rewriting:
    """Blank what one image does not support in a caption, and fill it anew.

    Doubted words in a row become one blank of any width. The new caption is kept if the image and the other
    words make it likelier, by token, than the given one.

    Args:
        model: a diffusion model in evaluation mode.
        features: of one image.
        text: the caption.
        settings: of decoding.
        tokenizer: of the model.
        keep: words that stay, whatever the image says.
        words: what the new caption has to be like, and the vocabulary of the tokenizer.
        generator: of the decoders that draw.
        confident: of a calibrated model.

    Raises:
        DDCapError: if the caption is empty or too long, or cannot be as it is asked to be.
    """
    ids, units = units_of(text, tokenizer, model.config.model.max_length)
    ((before,),) = caption_evidence(model, features, [[text]], tokenizer)
    doubted = doubtful(before.words, keep)
    pattern = words[0].pattern if words is not None else None
    if pattern is not None:  # what is banned goes, too
        banned = (number for number, one in enumerate(before.words) if pattern.search(one.word.lower()))
        doubted = sorted({*doubted, *banned})
    if not doubted:
        return Rewriting(before, (), None, before)
    filled = infill(
        model,
        features,
        _template(ids, units, doubted),
        settings,
        tokenizer.end_id,
        generator,
        words,
        tokenizer,
    )
    ((after,),) = finish([filled], tokenizer, confident=confident)
    ((evidence,),) = caption_evidence(model, features, [[after.text]], tokenizer)
    is_better = evidence.log_likelihood / evidence.tokens > before.log_likelihood / before.tokens
    if not is_better and pattern is None:
        return Rewriting(before, tuple(doubted), None, before)
    return Rewriting(before, tuple(doubted), after, evidence)


def _template(ids: Sequence[int], units: Units, doubted: Collection[int]) -> Template:
    """A caption with one blank for each run of doubted words."""
    parts: list[tuple[int, ...] | int | None] = []
    for is_blank, run in itertools.groupby(enumerate(units), lambda pair: pair[0] in doubted):
        given = tuple(ids[position] for _, positions in run for position in positions)
        parts.append(None if is_blank else given)
    return Template(tuple(parts))
