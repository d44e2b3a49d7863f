"""Drafts of captions under constraints: their ends are given, and phrases placed. Not in the paper.

Shapes: B captions, L positions, V words.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ddcap.arrays import Array, like, to_host
from ddcap.decoding.allowed_tokens import ConstrainedCaption, Vocabulary
from ddcap.decoding.constraints import Constraints
from ddcap.decoding.predictor import Predictor
from ddcap.errors import DDCapError

_CHARS = 5.2  # of a token in captions, its space included


class Frame:
    """The given parts of every caption under constraints: its ends, and phrases that are not placed yet.

    Args:
        constraints: what captions have to be like.
        vocabulary: of the tokenizer.
        longest: tokens of the model's longest caption.
    """

    def __init__(self, constraints: Constraints, vocabulary: Vocabulary, longest: int) -> None:
        self.constraints, self.vocabulary, self.longest = constraints, vocabulary, longest
        encode = vocabulary.tokenizer.encode_part
        self.prefix, self.suffix = encode(constraints.prefix), encode(constraints.suffix)
        self.phrases = [tuple(encode(phrase)) for phrase in constraints.unplaced]
        given = [*self.prefix, *self.suffix, *itertools.chain(*self.phrases)]
        self._given = len(given)
        self._chars = sum(len(vocabulary.pieces[token]) for token in given)
        words = sum(vocabulary.counts_as_word(token) for token in given)
        missing_words = max(0, (constraints.min_words or 1) - words)
        self.shortest = self._given + missing_words + 1  # the end token
        if self.shortest > longest:
            raise DDCapError(
                f"the required words take {self.shortest} tokens, but this model's longest caption has "
                f"{longest}; require fewer or shorter words"
            )
        if constraints.max_chars is not None and self.shortest > self._most(2):
            raise DDCapError(
                f"max_chars={constraints.max_chars}: too small for the other constraints; raise it"
            )

    def _most(self, chars: float) -> int:
        """Tokens of the longest caption whose free tokens have `chars` characters each."""
        limit = self.constraints.max_chars
        if limit is None:
            return self.longest
        room = limit + 1 - self._chars  # the first word's space is not seen
        return min(self.longest, self._given + 1 + int(room / chars)) if room >= 0 else 0

    def check_length(self, length: int) -> None:
        """Raise `DDCapError` if no caption of `length` tokens can be like that."""
        if length > self.longest:
            raise DDCapError(
                f"length {length}: this model's longest caption has {self.longest} tokens; lower it"
            )
        if length < self.shortest:
            raise DDCapError(
                f"length {length}: the required words take {self.shortest} tokens, end token included; "
                "raise it"
            )
        if length > self._most(2):
            raise DDCapError(
                f"length {length}: conflicts with max_chars={self.constraints.max_chars}; change one of them"
            )

    def lengths_near(self, length: int, count: int) -> list[int]:
        """The `count` lengths nearest to `length` that leave room; fewer, if there are not as many.

        None is far shorter than need be: of captions, the shortest is often the likeliest, and says least.
        """
        most = max(self.shortest, self._most(_CHARS))
        middle = min(max(length, self.shortest), most)
        fitting = range(max(self.shortest, middle * 2 // 3), most + 1)
        return sorted(fitting, key=lambda other: (abs(other - middle), -other))[:count]

    def caption(self, length: int) -> ConstrainedCaption:
        """A caption of `length` tokens whose ends are given."""
        blanks = length - len(self.prefix) - len(self.suffix) - 1
        tokens = [*self.prefix, *[self.vocabulary.mask_id] * blanks, *self.suffix, self.vocabulary.end_id]
        caption = ConstrainedCaption(self.constraints, self.vocabulary, tokens, {len(self.prefix)})
        caption.check_given()
        return caption


def padded(captions: Sequence[ConstrainedCaption]) -> np.ndarray:
    """(B, L) tokens of captions, end tokens behind shorter ones."""
    longest = max(len(caption.tokens) for caption in captions)
    end = captions[0].vocabulary.end_id
    return np.array([[*one.tokens, *[end] * (longest - len(one.tokens))] for one in captions])


def place_phrases(
    captions: Sequence[ConstrainedCaption],
    phrases: Sequence[tuple[int, ...]],
    predictor: Predictor,
    timesteps: Array,
) -> None:
    """Put the phrases where the model finds them likeliest: the surest first, then it looks again.

    Args:
        captions: B of them, with room for the phrases.
        phrases: tokens of each.
        predictor: for these captions.
        timesteps: (B,) t.

    Raises:
        DDCapError: if phrases cannot stand in a caption without completing a banned one.
    """
    left = [list(phrases) for _ in captions]
    for _ in phrases:
        tokens = padded(captions)
        log_probabilities = to_host(predictor.log_probabilities(like(tokens, timesteps), timesteps))
        for caption, remaining, rows in zip(captions, left, log_probabilities, strict=True):
            remaining.remove(_place_surest(caption, remaining, rows))


def _place_surest(
    caption: ConstrainedCaption, phrases: Sequence[tuple[int, ...]], rows: np.ndarray
) -> tuple[int, ...]:
    """Place one of the phrases, by log-probabilities (L, V); says which."""
    found = []
    for phrase in dict.fromkeys(phrases):
        others = list(phrases)
        others.remove(phrase)
        for start in caption.room_for(len(phrase)):
            mean = float(np.mean([rows[start + place, token] for place, token in enumerate(phrase)]))
            found.append((mean, -start, phrase, others))
    for _, start, phrase, others in sorted(found, reverse=True):
        if caption.place(-start, phrase, [len(other) for other in others]):
            return phrase
    wanted = ", ".join(repr(one) for one in caption.constraints.include)
    raise DDCapError(f"include {wanted}: cannot be included without a banned word; change one of them")
