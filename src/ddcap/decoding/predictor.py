"""The prediction of a step: guidance (special design 4) and concept bonuses added to the logits.

Shapes: B captions, L positions, n of them asked for, I images, K concepts of each, F forms, N concepts, V
words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ddcap.arrays import (
    Array,
    any_in_column,
    array_namespace,
    device,
    draw_uniform,
    like,
    log_sum_exp,
    places_of,
    raise_columns,
)
from ddcap.data.concepts import ConceptSpelling, ConceptTokens
from ddcap.data.persons import Persons
from ddcap.decoding.schedulers.interface import ModelOutput
from ddcap.errors import DDCapError
from ddcap.model.guidance import guide
from ddcap.model.protocol import DenoisingSteps

# What is seen in the image has a say in what is written: concepts as evidence while a caption is decoded. A
# tagger knows rare words better than a captioner that has read them a few times. Not in the paper; it needs a
# model with concepts, and settings switch it off. Near to it: keyword-biased decoding (Pascual et al. 2021),
# and CLIP's say in MAGIC (Su et al. 2022).


AMONG_CANDIDATES = 0.1
"""Share of a detector's evidence for persons that counts among candidates.

With more of it fewer persons are invented, but captions of worse English win (docs/research/experiments.md).
"""


@dataclass(frozen=True)
class ConceptEvidence:
    """Concepts seen in the images of a batch of captions, and how much they count.

    Attributes:
        seen: (B, N) confidence that an image shows each concept; 0 of those that are not seen.
        spelling: of the model's concepts.
        mask_id: V.
        bonus: is added to the log-probability of the first token of a concept's word, times the confidence,
            until the caption names the concept.
        repeat_penalty: is taken from the log-probability of the words of concepts that are named already.
        absence: weight of what speaks against concepts, see `against`.
        persons: (B,) what a detector says for persons (over 0) or against them, times its weight; None of a
            model without one. It is added to the log-probabilities of words for persons, above 0 until the
            caption names one; and `AMONG_CANDIDATES` of it to what a caption says that does.
    """

    seen: Array
    spelling: ConceptSpelling
    mask_id: int
    bonus: float
    repeat_penalty: float
    absence: float = 0.0
    persons: Array | None = None

    @classmethod
    def of(
        cls,
        concepts: ConceptTokens,
        spelling: ConceptSpelling,
        mask_id: int,
        *,
        bonus: float = 0.0,
        repeat_penalty: float = 0.0,
        absence: float = 0.0,
        persons: Persons | None = None,
        persons_weight: float = 0.0,
    ) -> ConceptEvidence:
        """Spread the concepts (I, K) of images out, for one caption of each.

        Raises:
            DDCapError: if absence is to count and the model does not know how often concepts go unlisted.
        """
        if absence and spelling.prior is None:
            raise DDCapError(
                f"absence={absence}: the rates of this model's concepts were not measured; set it to 0, or "
                "measure them (recipes/default/rates.py)"
            )
        xp = array_namespace(concepts.ids)
        numbers = xp.arange(spelling.concepts, device=device(concepts.ids))
        is_it = concepts.ids[:, :, None] == numbers  # (I, K, N); nowhere for NO_CONCEPT, which is negative
        shares = xp.astype(concepts.confidences, xp.float32)[:, :, None]
        seen = xp.sum(xp.where(is_it, shares, xp.zeros_like(shares)), axis=1)
        told = None
        if persons is not None and persons_weight and spelling.persons is not None:
            told = persons_weight * xp.astype(persons.evidence, xp.float32)
        return cls(seen, spelling.like(seen), mask_id, bonus, repeat_penalty, absence, told)

    @property
    def has_a_say(self) -> bool:
        """True if the probabilities of words depend on it."""
        return bool(self.bonus or self.repeat_penalty or self.absence or self.persons is not None)

    @cached_property
    def against(self) -> Array:
        """(B, N) what speaks against each concept, 0 or less.

        That is `absence` times the log of how likely people name it in this image against how likely they
        do in any: its confidence, or the rate of images in which it goes unlisted, against its prior.
        """
        xp, spelling = array_namespace(self.seen), self.spelling
        if not self.absence:
            return xp.zeros_like(self.seen)
        chance = xp.where(self.seen > 0, self.seen, spelling.unlisted)
        ratio = xp.log(chance) - xp.log(spelling.prior)
        return self.absence * xp.where(ratio < 0, ratio, xp.zeros_like(ratio))

    @cached_property
    def _against_words(self) -> Array:
        """(B, V) the same of the words of one token."""
        xp, spelling = array_namespace(self.seen), self.spelling
        table = xp.zeros((self.seen.shape[0], self.mask_id), dtype=xp.float32, device=device(self.seen))
        forms = spelling.one_token_forms
        table[:, spelling.first[forms]] = self.against[:, spelling.concept[forms]]
        return table

    @cached_property
    def _person_words(self) -> Array:
        """(V,) 1 for words of one token that are persons, else 0."""
        xp, spelling = array_namespace(self.seen), self.spelling
        assert spelling.persons is not None  # else there is nothing to say of them
        forms = spelling.one_token_forms
        is_person = spelling.persons[spelling.concept[forms]][None]
        table: Array = xp.astype(any_in_column(is_person, spelling.first[forms], self.mask_id)[0], xp.float32)
        return table

    def _name_persons(self, named: Array) -> Array:
        """(B,) True for captions that name a person, given the concepts (B, N) that they name."""
        assert self.spelling.persons is not None
        return array_namespace(named).any(named & self.spelling.persons, axis=1)

    def _says_of_persons(self, named: Array) -> Array:
        """(B, V) what the detector adds to words, given the concepts (B, N) that captions name."""
        xp = array_namespace(self.seen)
        assert self.persons is not None
        zeros = xp.zeros_like(self.persons)
        weight = xp.where((self.persons < 0) | ~self._name_persons(named), self.persons, zeros)
        return weight[:, None] * self._person_words

    @cached_property
    def _seen_forms(self) -> Array:
        """(f,) the words of concepts that are seen in any of the images."""
        xp = array_namespace(self.seen)
        return places_of(xp.any(self.seen > 0, axis=0)[self.spelling.concept])

    def log_probability(self, tokens: Array) -> Array:
        """(B, V) what is added to every position's log-probabilities, given the tokens (B, L) so far."""
        xp, spelling = array_namespace(self.seen), self.spelling
        named = spelling.named(tokens, self.mask_id)  # (B, N)
        added = xp.zeros((tokens.shape[0], self.mask_id), dtype=xp.float32, device=device(self.seen))
        # of thousands of words a few are seen or named in any of the captions: look at these only
        forms = self._seen_forms
        concepts = spelling.concept[forms]
        gain = self.bonus * xp.where(named[:, concepts], 0.0, self.seen[:, concepts])  # (B, f)
        added = raise_columns(added, spelling.first[forms], gain)
        forms = places_of(xp.any(named, axis=0)[spelling.concept] & spelling.is_one_token)
        is_again = named[:, spelling.concept[forms]] & spelling.is_one_token[forms]
        again = any_in_column(is_again, spelling.first[forms], self.mask_id)
        added = added - self.repeat_penalty * xp.astype(again, xp.float32)
        if self.absence:
            added = added + self._against_words
        return added if self.persons is None else added + self._says_of_persons(named)

    def said(self, tokens: Array) -> Array:
        """(B,) the confidences of all concepts that captions (B, L) name, and what speaks against them."""
        xp = array_namespace(self.seen)
        worth = self.seen + self.against if self.absence else self.seen
        named = self.spelling.named(tokens, self.mask_id)
        total = xp.sum(xp.where(named, worth, 0.0), axis=1)
        if self.persons is None:
            return total
        told = AMONG_CANDIDATES * self.persons
        return total + xp.where(self._name_persons(named), told, xp.zeros_like(told))

    def repeat(self, times: int) -> ConceptEvidence:
        """The same for `times` captions of each, side by side."""
        xp, told = array_namespace(self.seen), self.persons
        told = None if told is None else xp.repeat(told, times, axis=0)
        return replace(self, seen=xp.repeat(self.seen, times, axis=0), persons=told)

    def select(self, rows: Array) -> ConceptEvidence:
        """The same for captions `rows` (B',) of these."""
        told = None if self.persons is None else self.persons[rows]
        return replace(self, seen=self.seen[rows], persons=told)


# What a decoder asks at every step.


class Guesses:
    """Predictions of the step before, for a model that self-conditions.

    It is one for all captions of a batch, however few of them are still decoded. With guidance both branches
    are told the guided prediction: it is what the caption goes on with.

    Args:
        captions: B.
    """

    def __init__(self, captions: int) -> None:
        self._captions = captions
        self._words: Array | None = None  # (B, L), -1 where nothing was predicted yet

    def of(self, rows: Array | None, tokens: Array) -> Array:
        """(B', L') for captions `rows` of the batch (None: all), as long as `tokens`."""
        if self._words is None:
            size, xp = (self._captions, tokens.shape[1]), array_namespace(tokens)
            self._words = xp.full(size, -1, dtype=tokens.dtype, device=device(tokens))
        words = self._words if rows is None else self._words[rows]
        return words[:, : tokens.shape[1]]

    def note(self, rows: Array | None, positions: Array, words: Array) -> None:
        """Store what is predicted now: `words` (B', n) at `positions` (B', n)."""
        assert self._words is not None  # it was asked for before
        xp = array_namespace(positions)
        rows = xp.arange(positions.shape[0], device=device(positions)) if rows is None else rows
        self._words[rows[:, None], positions] = words


class Predictor:
    """p(x_0 | x_t, y) for a fixed batch of captions, with all that has a say in it.

    Args:
        steps: of the model, for the captions' images.
        lengths: (B,) with B a multiple of the images, grouped by image.
        scale: s of the guidance.
        concepts: of the B captions, if they are to have a say.
        barred: a token that is not to be chosen.
        bias: (B, V) that is added to the logits of every position.
        watch: is told the captions (B, L) before each step, MASK where there is no word yet.
        guesses: of the batch, for a model that self-conditions; None begins anew.
        rows: (B,) which captions of the batch these are; None for all.
    """

    def __init__(
        self,
        steps: DenoisingSteps,
        lengths: Array,
        scale: float = 1.0,
        concepts: ConceptEvidence | None = None,
        barred: int | None = None,
        bias: Array | None = None,
        watch: Callable[[Array], None] | None = None,
        guesses: Guesses | None = None,
        rows: Array | None = None,
    ) -> None:
        self.bias, self.watch, self.rows = bias, watch, rows
        self.guesses = guesses
        if guesses is None and steps.self_conditions:
            self.guesses = Guesses(len(lengths))
        self.steps, self.lengths, self.scale = steps, lengths, scale
        self.concepts = concepts if concepts is not None and concepts.has_a_say else None
        self.barred = barred

    def logits(self, tokens: Array, timestep: Array, positions: Array) -> Array:
        """Logits (B, n, V) of p(x_0 | x_t, y) at chosen positions of noised captions.

        Args:
            tokens: (B, L) x_t.
            timestep: (B,) t.
            positions: (B, n).
        """
        guess = self._told(tokens)
        logits, image_free = self.steps.logits(tokens, timestep, self.lengths, positions, *guess)
        if image_free is not None:
            logits = guide(logits, image_free, self.scale)
        added = self._added(tokens)
        logits = logits if added is None else logits + added[:, None, :]
        if self.guesses is not None:
            self.guesses.note(self.rows, positions, array_namespace(logits).argmax(logits, axis=-1))
        return logits

    def log_probabilities(self, tokens: Array, timestep: Array) -> Array:
        """Log p(x_0 | x_t, y) (B, L, V) at all positions."""
        everywhere = np.broadcast_to(np.arange(tokens.shape[1]), tuple(tokens.shape))
        return log_normalised(self.logits(tokens, timestep, like(everywhere, tokens)))

    def likeliest(self, tokens: Array, timestep: Array, positions: Array) -> tuple[Array, Array]:
        """The likeliest token (B, n) at each position, and its log-probability."""
        added, guess = self._added(tokens), self._told(tokens)
        found = self.steps.likeliest(tokens, timestep, self.lengths, positions, added, self.scale, *guess)
        if self.guesses is not None:
            self.guesses.note(self.rows, positions, found[0])
        return found

    def output(
        self, tokens: Array, timestep: Array, positions: Array, *, with_logits: bool = False
    ) -> ModelOutput:
        """The prediction for a scheduler: the likeliest tokens, or the logits."""
        if with_logits:
            return ModelOutput(positions, logits=self.logits(tokens, timestep, positions))
        chosen, log_probability = self.likeliest(tokens, timestep, positions)
        return ModelOutput(positions, chosen, log_probability)

    def select(self, rows: Array) -> Predictor:
        """The same for captions `rows` (B',), as many of each image."""
        concepts = None if self.concepts is None else self.concepts.select(rows)
        bias = None if self.bias is None else self.bias[rows]
        places = rows if self.rows is None else self.rows[rows]
        return Predictor(
            self.steps,
            self.lengths[rows],
            self.scale,
            concepts,
            self.barred,
            bias,
            self.watch,
            self.guesses,
            places,
        )

    def _told(self, tokens: Array) -> tuple[Array, ...]:
        """Return the guess that steps take besides the tokens: none, unless their model self-conditions."""
        if self.watch is not None:
            self.watch(tokens)
        return () if self.guesses is None else (self.guesses.of(self.rows, tokens),)

    def _added(self, tokens: Array) -> Array | None:
        """(B, V) what concepts say, the bias, and what is barred; None if there is nothing of it."""
        if self.concepts is None and self.barred is None and self.bias is None:
            return None
        if self.concepts is not None:
            added = self.concepts.log_probability(tokens)
        else:
            size, xp = (tokens.shape[0], self.steps.vocabulary_size), array_namespace(tokens)
            added = xp.zeros(size, dtype=xp.float32, device=device(tokens))
        if self.bias is not None:
            added = added + self.bias
        if self.barred is not None:
            added[:, self.barred] = -np.inf
        return added


def log_normalised(logits: Array) -> Array:
    """Logits (..., V) to log-probabilities."""
    return logits - log_sum_exp(logits)[..., None]


def choose_tokens(
    logits: Array, temperature: float = 0.0, generator: np.random.Generator | None = None
) -> tuple[Array, Array]:
    """(B, n, V) to (B, n): the likeliest token, or a draw from p^(1/temperature), and its log-probability.

    The log-probability is that of p, whatever the temperature.
    """
    xp = array_namespace(logits)
    chosen = xp.argmax(gumbel_scores(logits, temperature, generator), axis=-1)
    own = xp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
    return chosen, own - log_sum_exp(logits)


def gumbel_scores(
    logits: Array, temperature: float = 0.0, generator: np.random.Generator | None = None
) -> Array:
    """Logits (..., V) to scores of which the highest is a draw from p^(1/temperature); at 0 the logits.

    That is the Gumbel-max trick: the highest of `logits / temperature` and noise.
    """
    if not temperature:
        return logits
    xp = array_namespace(logits)
    uniform = xp.clip(draw_uniform(generator, tuple(logits.shape), logits), 1e-20, 1 - 1e-7)
    # -log u is exponential; u is kept over 0, and so is -log u, whose logarithm is taken next
    return logits / temperature - xp.log(-xp.log(uniform))
