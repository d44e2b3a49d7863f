"""Best-first inference under constraints: captions to begin with, phrases placed, tokens committed.

Not in the paper; see `decoding/constraints.py`.

Shapes: B captions, L positions, n of them asked for, V words.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ddcap.arrays import Array, like, log_sum_exp, to_host
from ddcap.decoding.constraints import ConstrainedCaption, Constraints, Vocabulary
from ddcap.decoding.predictor import Predictor, gumbel_scores
from ddcap.decoding.schedulers.interface import AllowedTokens
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


def commit_surest(
    captions: Sequence[AllowedTokens],
    logits: Array,
    asked: Array,
    is_open: np.ndarray,
    quota: np.ndarray,
    *,
    temperature: float = 0.0,
    generator: np.random.Generator | None = None,
    distinct: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Commit the surest tokens that are allowed; of a position whose token is refused, its next one competes.

    Args:
        captions: what is allowed in each of B captions; they are told of what is committed.
        logits: (B, n, V).
        asked: (B, n) their positions.
        is_open: (B, n) False at positions that are left alone.
        quota: (B,) tokens to commit in each caption.
        temperature: see `guidance.gumbel_scores`.
        generator: source of randomness.
        distinct: no token twice in a caption; then fewer than `quota` may be committed.

    Returns:
        Tokens (B, n), their probabilities, and whether they were committed.

    Raises:
        DDCapError: if no token is allowed at any position of a caption.
    """
    values = to_host(logits).astype(np.float32)
    values[..., ~captions[0].usable] = -np.inf
    probabilities = values - log_sum_exp(values)[..., None]
    scores = gumbel_scores(probabilities, temperature, generator)
    chosen = scores.argmax(axis=2)
    certainty = np.exp(np.take_along_axis(probabilities, chosen[..., None], axis=2)[..., 0])
    committed = np.zeros(chosen.shape, dtype=bool)
    places = to_host(asked)
    for row, caption in enumerate(captions):
        columns = np.flatnonzero(is_open[row]).tolist()
        if not columns or not quota[row]:
            continue
        surest = [
            (-float(certainty[row, column]), int(places[row, column]), column, int(chosen[row, column]))
            for column in columns
        ]
        done = _Queue(caption, surest, scores[row], probabilities[row]).commit(
            int(quota[row]), distinct=distinct
        )
        if not done:
            raise DDCapError(
                "the constraints leave no word for a blank; ban fewer words, or loosen the others"
            )
        for column, token, probability in done:
            chosen[row, column], certainty[row, column] = token, probability
            committed[row, column] = True
    return chosen, certainty, committed


class _Queue:
    """Positions of one caption, each with its likeliest token that is not refused yet, the surest first.

    Args:
        caption: what is allowed in it.
        surest: for each position -probability, position, column, token.
        scores: (n, V) by which tokens of a position are tried.
        probabilities: (n, V) logarithms.
    """

    def __init__(
        self,
        caption: AllowedTokens,
        surest: list[tuple[float, int, int, int]],
        scores: np.ndarray,
        probabilities: np.ndarray,
    ) -> None:
        self.caption, self.scores, self.probabilities = caption, scores, probabilities
        self.heap = surest
        heapq.heapify(self.heap)
        self._others: dict[int, Iterator[int]] = {}  # of columns whose likeliest token was refused

    def commit(self, quota: int, *, distinct: bool) -> list[tuple[int, int, float]]:
        """Column, token and probability of what was committed."""
        done: list[tuple[int, int, float]] = []
        while self.heap and len(done) < quota:
            certainty, place, column, token = heapq.heappop(self.heap)
            if not self.caption.allows(place, token):
                self._push_next(place, column)
            elif not (distinct and any(token == other for _, other, _ in done)):
                self.caption.commit(place, token)
                done.append((column, token, -certainty))
        return done

    def _push_next(self, place: int, column: int) -> None:
        if column not in self._others:
            scores = np.where(self.caption.possible(place), self.scores[column], -np.inf)
            order = np.argsort(-scores, kind="stable")[: int((scores > -np.inf).sum())]
            self._others[column] = iter(order.tolist())
        for token in self._others[column]:
            certainty = float(np.exp(self.probabilities[column, token]))
            heapq.heappush(self.heap, (-certainty, place, column, token))
            return
