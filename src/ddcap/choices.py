"""Choices for a person: drafts of a caption, and other words in place of one of its words.

Shapes: B captions, L positions, V words (the id V is MASK).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddcap.arrays import log_sum_exp, to_host
from ddcap.captioner import Captioner
from ddcap.data.sources import ImageSource
from ddcap.decoding.caption import Caption
from ddcap.decoding.constraints import Constraints, normalised
from ddcap.decoding.finishing import Confident, finish
from ddcap.decoding.generate import constrained_captions, whole_captions
from ddcap.decoding.sampler import Drafts, Sampler
from ddcap.decoding.schedulers.best_first import timestep_for_mask_ratio
from ddcap.errors import DDCapError

MOST = 6  # words that are offered
BEAM = 16  # beginnings of words that are followed


def caption_drafts(
    captioner: Captioner,
    image: ImageSource,
    *,
    include: Sequence[str] = (),
    ban: Sequence[str] = (),
    **settings: Any,
) -> tuple[Caption, ...]:
    """Caption an image, and keep the candidates that were not chosen.

    Args:
        captioner: of any model.
        image: path or PIL image.
        include: see `Captioner.__call__`.
        ban: see `Captioner.__call__`.
        settings: of the decoder.

    Returns:
        All candidates, each of another length, the likeliest first: that is the caption.

    Raises:
        ImageError: if the image cannot be read.
        DDCapError: if no caption can be as it is asked to be.
    """
    constraints = Constraints(include=tuple(include), ban=tuple(ban))
    sampler, confident = _sampler(captioner, image, constraints, settings)
    every = sampler.settings.candidates
    with captioner.computing():
        if constraints.is_empty:
            found = whole_captions(sampler, every)
        else:
            found = constrained_captions(sampler, constraints, captioner.word_vocabulary, wanted=every)
        (drafts,) = finish([found], captioner.tokenizer, wanted=found.per_image, confident=confident)
    return drafts


def _sampler(
    captioner: Captioner, image: ImageSource, constraints: Constraints, settings: dict[str, Any]
) -> tuple[Sampler, Confident | None]:
    """A sampler of one image, and what it takes to say how sure the model is."""
    model = captioner.model
    constraints.check_spelling(captioner.tokenizer)
    seen = features = captioner.features([image])
    for edit in constraints.edits(model.vocabulary):
        features = features.edited(edit)
    sampler = Sampler(model, features, captioner.settings(**settings), captioner.tokenizer.end_id)
    return sampler, Confident.of(captioner.confidence, seen, model)


@dataclass(frozen=True)
class Alternative:
    """A word that fits in place of another one.

    Attributes:
        word: the word.
        probability: of all single words in this place, given the image and the other words.
    """

    word: str
    probability: float


def word_alternatives(
    captioner: Captioner,
    image: ImageSource,
    words: Sequence[str],
    place: int,
    *,
    ban: Sequence[str] = (),
    guidance: float | None = None,
) -> list[Alternative]:
    """Find words that fit in place of one of a caption's words.

    The word is hidden, as one MASK, as two, and so on up to as many tokens as it has. The probability of a
    word is that of its tokens, one after the other, among all that make one word. A word that only adds
    tokens to a likelier one is left out: "cupy", if "cup" is likelier.

    Args:
        captioner: of a diffusion model.
        image: path or PIL image.
        words: of the caption.
        place: number of the word, from 0.
        ban: words that are not offered, and concepts that the model is not to see.
        guidance: scale; None takes the captioner's own.

    Returns:
        The likeliest words first, without the one that is there.

    Raises:
        ImageError: if the image cannot be read.
        DDCapError: if there is no such word, the caption is too long, or the model is autoregressive.
    """
    if captioner.model.config.model.kind != "diffusion":
        raise DDCapError("an autoregressive model cannot offer other words; use a diffusion model")
    if not 0 <= place < len(words):
        raise DDCapError(f"word {place}: the caption has {len(words)} words, from 0; choose one of them")
    tokenizer, constraints = captioner.tokenizer, Constraints(ban=tuple(ban))
    tokenizer.check_spelling("caption", " ".join(words))
    before = tokenizer.encode_part(" ".join(words[:place]))
    after = tokenizer.encode(" ".join(words[place + 1 :]))
    settings = {} if guidance is None else {"guidance": guidance}
    blank = _Blank(captioner, _sampler(captioner, image, constraints, settings)[0], before, after)
    longest = captioner.model.config.model.max_length
    if len(before) + 1 + len(after) > longest:
        raise DDCapError(f"the caption is longer than {longest} tokens; shorten it")
    found: dict[tuple[int, ...], float] = {}
    for width in range(1, max(2, len(tokenizer.encode_part(words[place]))) + 1):
        if len(before) + width + len(after) > longest:
            break
        for ids, probability in blank.fillings(width):
            if probability >= found.get(
                ids[:1], 0.0
            ):  # else a likelier word with something added: "cup", "cupy"
                found[ids] = probability
    total, pattern = sum(found.values()), constraints.pattern

    def is_offered(word: str) -> bool:
        text = " ".join([*words[:place], word, *words[place + 1 :]])
        return word != words[place] and not (pattern and pattern.search(normalised(text)))

    pieces = captioner.word_vocabulary.pieces
    spelled = (("".join(pieces[token] for token in ids).strip(), value) for ids, value in found.items())
    ranked = sorted(spelled, key=lambda pair: -pair[1])
    return [Alternative(word, value / total) for word, value in ranked if is_offered(word)][:MOST]


@dataclass(frozen=True)
class _Blank:
    """A hidden word of a caption: the tokens before and behind it, and who predicts it."""

    captioner: Captioner
    sampler: Sampler
    before: list[int]
    after: list[int]

    def fillings(self, width: int) -> list[tuple[tuple[int, ...], float]]:
        """Words of so many tokens as token ids, and the probability of each."""
        vocabulary = self.captioner.word_vocabulary
        beams: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        for place in range(width):
            is_last = place == width - 1
            fits = vocabulary.usable & (vocabulary.begins == (place == 0))
            probabilities = self._next([ids for ids, _ in beams], width) * fits
            scores = probabilities * np.array([[chance] for _, chance in beams])
            order = np.argsort(-scores, axis=None, kind="stable")[: None if is_last else BEAM]
            rows, tokens = np.unravel_index(order, scores.shape)
            beams = [
                ((*beams[row][0], int(token)), float(scores[row, token]))
                for row, token in zip(rows, tokens, strict=True)
                if scores[row, token] > 0
            ]
            if not beams:
                return []
        return beams

    def _next(self, begun: list[tuple[int, ...]], width: int) -> np.ndarray:
        """(B, V) probabilities of the token that follows each beginning."""
        model = self.captioner.model
        place, left = len(begun[0]), width - len(begun[0])
        length = len(self.before) + width + len(self.after)
        rows = [[*self.before, *ids, *[model.mask_id] * left, *self.after] for ids in begun]
        count, array = len(rows), model.as_array
        lengths = np.full(count, length)
        drafts = Drafts(array(np.array(rows)), array(lengths), count, may_end=False)
        timesteps = timestep_for_mask_ratio(np.full(count, left), lengths, model.config.diffusion.steps)
        positions = array(np.full((count, 1), len(self.before) + place))
        with self.captioner.computing():
            logits = self.sampler.predictor(drafts).logits(drafts.tokens, array(timesteps), positions)[:, 0]
            return np.asarray(np.exp(to_host(logits - log_sum_exp(logits)[..., None])))
