"""What a person may choose from: the drafts of a caption, and other words in place of one of its words.

Shapes: B captions, L positions, V words (the id V is MASK).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddcap.arrays import Array, log_sum_exp, to_host
from ddcap.captioner import Captioner
from ddcap.data.images import ImageSource
from ddcap.decoding.best_first import share_left
from ddcap.decoding.caption import Caption
from ddcap.decoding.constraints import Constraints, normalised
from ddcap.decoding.guidance import ConceptEvidence, Predictor
from ddcap.decoding.request import CaptionRequest
from ddcap.errors import DDCapError, ImageError
from ddcap.model.config import ModelConfig

MOST = 6  # words that are offered
BEAM = 16  # beginnings of words that are followed


class _AllCandidates(CaptionRequest):
    """A request for all candidates of a picture's caption, not only for the likeliest."""

    def _varies_words(self, _: ModelConfig) -> bool:
        return False


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
    constraints, decoding = (
        Constraints(include=tuple(include), ban=tuple(ban)),
        captioner.settings(**settings),
    )
    asked = _AllCandidates(
        settings=decoding,
        num=decoding.candidates,
        constraints=constraints,
        edits=tuple(constraints.edits(captioner.model.vocabulary)),
        confidence=captioner.confidence,
    ).checked(captioner.model.config, captioner.word_vocabulary)
    pixels, generator = captioner.pixels(image), np.random.default_rng(0)
    with captioner.computing():
        (result,) = asked.results(captioner.model, [image], [pixels], captioner.word_vocabulary, generator)
    if result.error is not None:
        raise ImageError(result.error)
    return result.captions


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
    blank = _Blank.of(captioner, image, words, place, ban, guidance)
    longest = captioner.model.config.model.max_length
    if len(blank.before) + 1 + len(blank.after) > longest:
        raise DDCapError(f"the caption is longer than {longest} tokens; shorten it")
    found: dict[tuple[int, ...], float] = {}
    for width in range(1, max(2, len(captioner.tokenizer.encode_part(words[place]))) + 1):
        if len(blank.before) + width + len(blank.after) > longest:
            break
        for ids, probability in blank.fillings(width):
            if probability >= found.get(
                ids[:1], 0.0
            ):  # else a likelier word with something added: "cup", "cupy"
                found[ids] = probability
    total, pattern = sum(found.values()), Constraints(ban=tuple(ban)).pattern

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
    before: list[int]
    after: list[int]
    steps: Any
    scale: float
    concepts: ConceptEvidence | None

    @classmethod
    def of(
        cls,
        captioner: Captioner,
        image: ImageSource,
        words: Sequence[str],
        place: int,
        ban: Sequence[str],
        guidance: float | None,
    ) -> _Blank:
        model, tokenizer = captioner.model, captioner.tokenizer
        settings = captioner.settings() if guidance is None else captioner.settings(guidance=guidance)
        features = captioner.features([image])
        for edit in Constraints(ban=tuple(ban)).edits(model.vocabulary):
            features = features.edited(edit)
        concepts = None
        if features.concepts is not None and model.spelling is not None:
            concepts = ConceptEvidence.of(
                features.concepts,
                model.spelling,
                model.mask_id,
                bonus=settings.concept_bonus,
                repeat_penalty=settings.repeat_penalty,
            )
        with captioner.computing():
            steps = model.denoising_steps(features, with_image_free=settings.guidance != 1)
        before = tokenizer.encode_part(" ".join(words[:place]))
        after = tokenizer.encode(" ".join(words[place + 1 :]))
        return cls(captioner, before, after, steps, settings.guidance, concepts)

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
        count = len(rows)
        concepts = None if self.concepts is None else self.concepts.repeat(count)
        predictor = Predictor(
            self.steps,
            model.as_array(np.full(count, length)),
            self.scale,
            concepts,
            barred=self.captioner.tokenizer.end_id,
        )
        timestep = int(share_left(np.array([left]), np.array([length]), model.config.diffusion.steps)[0])
        positions: Array = model.as_array(np.full((count, 1), len(self.before) + place))
        with self.captioner.computing():
            logits = predictor.logits(
                model.as_array(np.array(rows)), model.as_array(np.full(count, timestep)), positions
            )[:, 0]
            return np.asarray(np.exp(to_host(logits - log_sum_exp(logits)[..., None])))
