"""Scores of given captions: how well an image supports them, by word and as a whole.

Two likelihoods of a caption, neither in the paper:

- Pseudo-likelihood: each token is predicted from all others and the image. A word of several tokens is
  predicted from left to right with its later tokens hidden, since they would give it away. Sources: Salazar
  et al. 2020; Kauf and Ivanova 2023 for words of several tokens.
- Sampler's likelihood: the probability that best-first inference writes exactly this caption, if it draws the
  tokens of the positions that it finds surest. Which these are depends only on what is committed, so it is a
  product over the steps; over all captions of a length it sums to 1.

The pseudo-log-likelihood with the image less that without it is the pointwise mutual information of caption
and image: what the image says for a word beyond what language does.

Shapes: B captions, I images (B a multiple of I), L positions, V words (the id V is MASK).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like, log_sum_exp, to_host
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.predictor import Predictor
from ddcap.decoding.schedulers.best_first import (
    BestFirstPlan,
    margin,
    plan_steps,
    timestep_for_mask_ratio,
)
from ddcap.decoding.schedulers.surest import drop_duplicates, top_k_confident
from ddcap.decoding.words import words_in
from ddcap.errors import DDCapError
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel, DenoisingModel
from ddcap.settings import DecodingSettings

_PHRASE = re.compile(r"(\[[^\[\]]*\])")
_ROWS = 512  # noised captions computed at once


@dataclass(frozen=True)
class WordEvidence:
    """The support of an image for one word of a caption.

    Attributes:
        word: the word.
        log_probability: log-probability of its tokens, given the image and all other words.
        without_image: the same without the image.
        tokens: number of its tokens.
    """

    word: str
    log_probability: float
    without_image: float
    tokens: int

    @property
    def gain(self) -> float:
        """Pointwise mutual information with the image, in nats; below 0 the image contradicts the word."""
        return self.log_probability - self.without_image


@dataclass(frozen=True)
class CaptionEvidence:
    """The support of an image for a caption.

    Attributes:
        words: evidence of each word.
        end: evidence of the end token.
    """

    words: tuple[WordEvidence, ...]
    end: WordEvidence

    @cached_property
    def log_likelihood(self) -> float:
        """Pseudo-log-likelihood of the caption, given the image."""
        return sum(word.log_probability for word in (*self.words, self.end))

    @cached_property
    def gain(self) -> float:
        """Pointwise mutual information of caption and image, in nats."""
        return sum(word.gain for word in (*self.words, self.end))

    @property
    def tokens(self) -> int:
        """Number of tokens, end token included."""
        return sum(word.tokens for word in (*self.words, self.end))

    @property
    def fit(self) -> float:
        """The gain per token: how well caption and image fit."""
        return self.gain / self.tokens


def caption_evidence(
    model: DenoisingModel,
    features: ImageFeatures,
    captions: Sequence[Sequence[str]],
    tokenizer: CaptionTokenizer,
) -> list[list[CaptionEvidence]]:
    """Score captions of I images, as many of each image.

    Args:
        model: a diffusion model in evaluation mode.
        features: of I images.
        captions: texts, a list for each image; what stands in [brackets] counts as one word.
        tokenizer: of the model.

    Raises:
        DDCapError: if a caption is empty or too long for the model, or the model is autoregressive.
    """
    check_scores(model)
    longest = model.config.model.max_length
    rows = [[units_of(text, tokenizer, longest) for text in texts] for texts in captions]
    if len({len(texts) for texts in rows}) != 1:
        raise ValueError("all images need the same number of captions")
    queries = [[query for one in texts for query in _queries(*one, tokenizer.mask_id)] for texts in rows]
    most = max(len(texts) for texts in queries)
    for texts in queries:
        texts += texts[:1] * (most - len(texts))  # each image has as many rows as the others
    found = _log_probabilities(model, features, queries, with_image_free=True)
    return [
        _gathered(texts, iter(values), tokenizer) for texts, values in zip(rows, found.tolist(), strict=True)
    ]


def pseudo_log_likelihoods(
    model: DenoisingModel,
    features: ImageFeatures,
    captions: Sequence[Sequence[int]],
    tokenizer: CaptionTokenizer,
) -> np.ndarray:
    """(C,) pseudo-log-likelihood of captions of one image, as token ids with the end token last."""
    queries = [_queries(ids, words_in(ids, tokenizer), tokenizer.mask_id) for ids in captions]
    flat = [query for of_caption in queries for query in of_caption]
    found = _log_probabilities(model, features, [flat], with_image_free=False)[0, :, 0]
    first = np.cumsum([0, *(len(of_caption) for of_caption in queries)])[:-1]
    return np.asarray(np.add.reduceat(found, first))


class ManyCaptions:
    """Captions that many images are compared with: what is the same for all images is computed once.

    Args:
        model: a diffusion model in evaluation mode.
        captions: texts.
        tokenizer: of the model.

    Raises:
        DDCapError: as `caption_evidence`.
    """

    def __init__(self, model: DenoisingModel, captions: Sequence[str], tokenizer: CaptionTokenizer) -> None:
        check_scores(model)
        self.model = model
        rows = [units_of(text, tokenizer, model.config.model.max_length) for text in captions]
        self._queries = [_queries(*one, tokenizer.mask_id) for one in rows]
        self.tokens = np.array([len(ids) for ids, _ in rows])
        self._image_free = np.full(len(rows), np.nan)  # as they come to be known

    def gains(self, features: ImageFeatures, chosen: Sequence[int] | None = None) -> np.ndarray:
        """(C,) pointwise mutual information of one image with each caption, in nats.

        Args:
            features: of the image.
            chosen: numbers of the captions to look at; None: all.
        """
        numbers = np.arange(len(self.tokens)) if chosen is None else np.asarray(chosen)
        is_new = bool(np.isnan(self._image_free[numbers]).any())
        queries = [query for number in numbers for query in self._queries[number]]
        found = _log_probabilities(self.model, features, [queries], with_image_free=is_new)[0]
        first = np.cumsum([0, *self.tokens[numbers]])[:-1]
        if is_new:
            self._image_free[numbers] = np.add.reduceat(found[:, 1], first)
        gains: np.ndarray = np.add.reduceat(found[:, 0], first) - self._image_free[numbers]
        return gains


def check_scores(model: CaptioningModel) -> None:
    """Raise `DDCapError` if a model cannot score given captions."""
    if model.config.model.kind != "diffusion":
        raise DDCapError("an autoregressive model cannot score given captions; use a diffusion model")


def encoded(text: str, tokenizer: CaptionTokenizer, longest: int) -> list[int]:
    """Token ids of a caption, the end token last.

    Raises:
        DDCapError: if it is empty or has more than `longest` tokens.
    """
    ids = tokenizer.encode(text)
    check_size(text, len(ids), longest)
    return ids


def check_size(text: str, tokens: int, longest: int) -> None:
    """Raise `DDCapError` if a caption is empty, but for the end token, or has more tokens than `longest`."""
    if tokens == 1:
        raise DDCapError(f"caption {text!r}: has no word that this model knows; use other words")
    if tokens > longest:
        raise DDCapError(
            f"caption {text!r}: has {tokens} tokens, but this model's longest caption has {longest}; "
            "shorten it"
        )


Units = list[list[int]]
"""Positions of each word or phrase of a caption, the end token last."""


def units_of(text: str, tokenizer: CaptionTokenizer, longest: int) -> tuple[list[int], Units]:
    """Token ids of a caption, and its words; what stands in [brackets] is one phrase.

    Raises:
        DDCapError: see `encoded`.
    """
    ids: list[int] = []
    units: Units = []
    for part in _PHRASE.split(text):
        is_phrase = part.startswith("[")
        new = tokenizer.encode_part(part.strip("[]"))
        places = [[len(ids) + at for at in word] for word in words_in(new, tokenizer)]
        units += [[at for word in places for at in word]] if is_phrase and new else places
        ids += new
    check_size(text, len(ids) + 1, longest)
    return [*ids, tokenizer.end_id], [*units, [len(ids)]]


_Query = tuple[list[int], int, int]
"""A caption with tokens hidden, the position of one of them, and the token."""


def _queries(ids: Sequence[int], units: Units, mask_id: int) -> list[_Query]:
    """One for each token: it and what follows it in its word are hidden."""
    queries = []
    for unit in units:
        for place, position in enumerate(unit):
            hidden = unit[place:]
            noised = [mask_id if at in hidden else token for at, token in enumerate(ids)]
            queries.append((noised, position, ids[position]))
    return queries


def _log_probabilities(
    model: DenoisingModel,
    features: ImageFeatures,
    queries: list[list[_Query]],
    *,
    with_image_free: bool,
) -> np.ndarray:
    """(I, R, 1 or 2) log-probability of each query's token with the image, and without it."""
    images, count = len(queries), len(queries[0])
    steps = model.denoising_steps(features, with_image_free=with_image_free)
    parts = []
    size = max(1, _ROWS // images)
    for start in range(0, count, size):
        chosen = [query for texts in queries for query in texts[start : start + size]]
        lengths = np.array([len(noised) for noised, _, _ in chosen])
        longest = int(lengths.max())
        tokens = np.array([noised + [0] * (longest - len(noised)) for noised, _, _ in chosen])
        hidden = (tokens == model.mask_id).sum(axis=1)
        timestep = timestep_for_mask_ratio(hidden, lengths, model.config.diffusion.steps)
        positions = np.array([[position] for _, position, _ in chosen])
        wanted = model.as_array(np.array([[[token]] for _, _, token in chosen]))
        arrays = (model.as_array(one) for one in (tokens, timestep, lengths, positions))
        both = []
        for logits in steps.logits(*arrays)[: 1 + with_image_free]:
            own = array_namespace(logits).take_along_axis(logits, wanted, axis=2)[:, 0, 0]
            both.append(to_host(own - log_sum_exp(logits)[:, 0]))
        parts.append(np.stack(both, axis=1).reshape(images, len(chosen) // images, -1))
    return np.concatenate(parts, axis=1)


def _gathered(
    captions: Sequence[tuple[list[int], Units]], values: Any, tokenizer: CaptionTokenizer
) -> list[CaptionEvidence]:
    """Log-probabilities of tokens, in order, to those of words."""
    found = []
    for ids, units in captions:
        words = []
        pieces = tokenizer.pieces(ids)
        for positions in units:
            pairs = [next(values) for _ in positions]
            text = "".join(pieces[position] for position in positions).strip()
            own, free = (sum(pair[which] for pair in pairs) for which in (0, 1))
            words.append(WordEvidence(text, own, free, len(positions)))
        found.append(CaptionEvidence(tuple(words[:-1]), words[-1]))
    return found


def sampler_evidence(
    model: DenoisingModel,
    features: ImageFeatures,
    captions: Sequence[str],
    settings: DecodingSettings,
    tokenizer: CaptionTokenizer,
) -> np.ndarray:
    """(C,) log-probability that best-first inference writes each caption of an image, given its length.

    The settings' steps, guidance, concepts, `distinct` and `order` count; so it is exact for the sampler that
    they describe. See `sampler_log_likelihood`.

    Raises:
        DDCapError: as `caption_evidence`, or if the settings are of another decoder.
    """
    check_scores(model)
    if settings.method != "best_first":
        raise DDCapError(f"method={settings.method}: has no likelihood here; use method=best_first")
    from ddcap.decoding.sampler import concept_evidence

    rows = [encoded(text, tokenizer, model.config.model.max_length) for text in captions]
    sizes = np.array([len(ids) for ids in rows])
    padded = [[*ids, *[tokenizer.end_id] * (int(sizes.max()) - len(ids))] for ids in rows]
    tokens, lengths = model.as_array(np.array(padded)), model.as_array(sizes)
    concepts = concept_evidence(model, features, settings, len(rows))
    steps = model.denoising_steps(features, with_image_free=settings.guidance != 1)
    predictor = Predictor(steps, lengths, settings.guidance, concepts)
    plan = plan_steps(sizes, sizes, model.config.diffusion.steps, settings.steps)
    found = sampler_log_likelihood(
        predictor, tokens, plan, model.mask_id, distinct=settings.distinct, order=settings.order
    )
    return np.asarray(to_host(found))


def sampler_log_likelihood(
    predictor: Predictor,
    tokens: Array,
    plan: BestFirstPlan,
    mask_id: int,
    *,
    distinct: bool = False,
    order: Literal["probability", "margin"] = "probability",
) -> Array:
    """(B,) log-probability that best-first inference, drawing at temperature 1, writes these captions.

    The sampler chooses positions by what it finds likeliest there, then draws their tokens independently; the
    next step sees them. With `distinct` it leaves a position to the next step if a surer one is likeliest to
    have the same word.

    Args:
        predictor: for these captions, with all that has a say.
        tokens: (B, L) the captions; padding is any word.
        plan: of `plan_steps` for captions that are all MASK at the start.
        mask_id: V.
        distinct: see `BestFirstScheduler`.
        order: see `BestFirstScheduler`.
    """
    xp, on = array_namespace(tokens), device(tokens)
    places = xp.arange(tokens.shape[1], device=on)
    is_mask = places < like(plan.lengths, tokens)[:, None]
    total = xp.zeros(tokens.shape[0], dtype=xp.float32, device=on)
    blanks, step = plan.blanks, 0
    while step < len(plan.quotas) or blanks.any():
        timesteps, quotas = plan.timestep(step, blanks), plan.quota(step, blanks)
        now = xp.where(is_mask, mask_id, tokens)
        log_probabilities = predictor.log_probabilities(now, like(timesteps, tokens))  # (B, L, V)
        likeliest = xp.max(log_probabilities, axis=2)
        certainty = xp.exp(likeliest) if order == "probability" else margin(log_probabilities)
        committed = top_k_confident(is_mask, certainty, like(quotas, tokens))
        if distinct:
            committed = drop_duplicates(committed, xp.argmax(log_probabilities, axis=2), certainty)
        own = xp.take_along_axis(log_probabilities, tokens[..., None], axis=2)[..., 0]
        total = total + xp.sum(xp.where(committed, own, 0.0), axis=1)
        is_mask = is_mask & ~committed
        blanks = to_host(xp.sum(xp.astype(is_mask, xp.int64), axis=1))
        step += 1
    return total
