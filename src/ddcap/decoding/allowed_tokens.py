"""The tokens that constraints allow at each position of a caption on its way.

A caption is built token by token in any order. A token is refused if no caption that obeys could come of it
any more: every rule here leaves at least one token to each position that is still MASK, so a finished caption
obeys by construction. Not in the paper; best-first inference (section 3.3) makes it possible, since it may
commit any position next.

Shapes: L positions, V words (the id V is MASK).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.constraints import MASK, Constraints, normalised, words_of
from ddcap.errors import DDCapError


class Vocabulary:
    """The spelling of each token of a tokenizer; MASK is one character."""

    def __init__(self, tokenizer: CaptionTokenizer) -> None:
        self.tokenizer, self.end_id, self.mask_id = tokenizer, tokenizer.end_id, tokenizer.mask_id

    @cached_property
    def pieces(self) -> list[str]:
        """(V + 1) what each token adds to a text."""
        return [*self.tokenizer.pieces(range(self.tokenizer.vocabulary_size)), MASK]

    @cached_property
    def plain(self) -> list[str]:
        """(V + 1) the same, normalised."""
        return [normalised(piece) for piece in self.pieces]

    @cached_property
    def sizes(self) -> np.ndarray:
        """(V,) characters of each."""
        return np.array([len(piece) for piece in self.pieces[:-1]])

    @cached_property
    def begins(self) -> np.ndarray:
        """(V,) True for tokens that begin a word."""
        return np.array([piece.startswith(" ") for piece in self.pieces[:-1]])

    @cached_property
    def is_word(self) -> np.ndarray:
        """(V,) True for tokens that begin a word which has a letter or digit."""
        return self.begins & np.array([bool(words_of(piece)) for piece in self.plain[:-1]])

    @cached_property
    def usable(self) -> np.ndarray:
        """(V,) False for what is never chosen: the end, nothing visible, a part of a character."""
        usable = np.array(
            [bool(piece.strip()) and not set("\ufffd\0") & set(piece) for piece in self.pieces[:-1]]
        )
        usable[self.end_id] = False
        return usable

    def counts_as_word(self, token: int) -> bool:
        """Return True for a token that certainly begins a word of its own."""
        return bool(self.is_word[token])


class ConstrainedCaption:
    """One caption on its way: which tokens may be committed where.

    Args:
        constraints: what it has to be like.
        vocabulary: of the tokenizer.
        tokens: (L,) given tokens and MASK, the end token last.
        starts: positions whose token begins a word: those behind a given word.
    """

    def __init__(
        self, constraints: Constraints, vocabulary: Vocabulary, tokens: Sequence[int], starts: Iterable[int]
    ) -> None:
        self.constraints, self.vocabulary = constraints, vocabulary
        self.tokens, self.starts = [int(token) for token in tokens], {0, *starts}
        self._count()

    def _count(self) -> None:
        pieces, mask, vocabulary = self.vocabulary.pieces, self.vocabulary.mask_id, self.vocabulary
        self._masks = sum(token == mask for token in self.tokens)
        self._chars = sum(len(pieces[token]) for token in self.tokens if token != mask)
        self._words = sum(
            vocabulary.counts_as_word(token)
            for token in self.tokens
            if token not in (mask, vocabulary.end_id)
        )

    def allows(self, position: int, token: int) -> bool:
        """Return True if `token` may be committed at a MASK position."""
        pattern = self.constraints.pattern
        if not self._obeys(position, token):
            return False
        return pattern is None or pattern.search(self._text(position, token)) is None

    def possible(self, position: int) -> np.ndarray:
        """(V,) False for tokens that `allows` refuses whatever they spell."""
        return np.asarray(self._obeys(position, slice(None)))

    def _obeys(self, position: int, tokens: int | slice) -> Any:
        """Check which of `tokens` may stand at a MASK position as far as starts, characters and words go."""
        vocabulary, asked, left = self.vocabulary, self.constraints, self._masks - 1
        obeys = vocabulary.usable[tokens]
        if position in self.starts:
            obeys = obeys & vocabulary.begins[tokens]
        if asked.max_chars is not None:
            # a MASK can always become a space and a letter; the first space is not seen
            obeys = obeys & (self._chars + vocabulary.sizes[tokens] <= asked.max_chars + 1 - 2 * left)
        if asked.min_words is not None:
            obeys = obeys & (self._words + vocabulary.is_word[tokens] + left >= asked.min_words)
        return obeys

    def commit(self, position: int, token: int) -> None:
        """Put a token that is allowed where a MASK was."""
        self.tokens[position] = token
        self._masks -= 1
        self._chars += len(self.vocabulary.pieces[token])
        self._words += self.vocabulary.counts_as_word(token)

    def hide(self, positions: Iterable[int]) -> None:
        """Make positions MASK again."""
        for position in positions:
            self.tokens[position] = self.vocabulary.mask_id
        self._count()

    @property
    def usable(self) -> np.ndarray:
        """(V,) False for tokens that are never allowed, see `Vocabulary.usable`."""
        return self.vocabulary.usable

    @property
    def masks(self) -> int:
        """Positions that are still MASK."""
        return self._masks

    @property
    def is_possible(self) -> bool:
        """True if the rest can still be filled."""
        asked = self.constraints
        is_short = asked.max_chars is None or self._chars + 2 * self._masks <= asked.max_chars + 1
        return is_short and (asked.min_words is None or self._words + self._masks >= asked.min_words)

    def check_given(self) -> None:
        """Raise `DDCapError` if what is given holds what is banned, side by side."""
        found = self.constraints.pattern and self.constraints.pattern.search(self._text())
        if found:
            raise DDCapError(
                f"the given words contain {found.group().strip()!r}, which is banned; change one of them"
            )

    def room_for(self, size: int) -> list[int]:
        """List the starts of `size` tokens in a row that are all MASK."""
        return [start for first, count in self._gaps() for start in range(first, first + count - size + 1)]

    def place(self, start: int, phrase: Sequence[int], others: Sequence[int]) -> bool:
        """Put a phrase at MASK positions, if others of so many tokens still fit and nothing is broken."""
        before, starts = list(self.tokens), set(self.starts)
        self.tokens[start : start + len(phrase)] = phrase
        self.starts.add(start + len(phrase))
        pattern = self.constraints.pattern
        if fits(
            sorted((count for _, count in self._gaps()), reverse=True), sorted(others, reverse=True)
        ) and not (pattern and pattern.search(self._text())):
            self._count()
            return True
        self.tokens, self.starts = before, starts
        return False

    def _gaps(self) -> list[tuple[int, int]]:
        """First position and size of each run of MASKs."""
        mask, gaps, position = self.vocabulary.mask_id, [], 0
        for is_mask, run in itertools.groupby(self.tokens, lambda token: token == mask):
            size = len(list(run))
            if is_mask:
                gaps.append((position, size))
            position += size
        return gaps

    def _text(self, position: int | None = None, token: int = 0) -> str:
        """The normalised text, perhaps with another token at one position."""
        plain, end = self.vocabulary.plain, self.vocabulary.end_id
        texts = ["" if one == end else plain[one] for one in self.tokens]
        if position is not None:
            texts[position] = plain[token]
        return "".join(texts)


def fits(gaps: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return True if runs of `sizes` tokens fit into `gaps` side by side."""
    if not sizes:
        return True
    first, rest = sizes[0], sizes[1:]
    for number, gap in enumerate(gaps):
        if gap >= first and fits([*gaps[:number], gap - first, *gaps[number + 1 :]], rest):
            return True
    return False
