"""Constraints on a caption's words, and the tokens that they allow at each position.

A caption is built token by token in any order. A token is refused if no caption that obeys could come of it
any more: every rule here leaves at least one token to each position that is still MASK, so a finished caption
obeys by construction. Not in the paper; best-first inference (section 3.3) makes it possible, since it may
commit any position next.

Shapes: B captions, L positions, V words (the id V is MASK).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.data.concepts import ConceptEdits, ConceptVocabulary
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.words import straight
from ddcap.errors import DDCapError
from ddcap.files import listed_lines, read_text
from ddcap.values import as_text, as_texts, as_whole

MOST_PHRASES = 8  # of one caption; each is placed by a pass of its own
_MASK = "\0"  # stands for a MASK in a text
_LETTER = r"[^\W_]"  # or a digit, of any script
_RUN = re.compile(rf"{_LETTER}+")
_APART = rf"(?:(?!{_LETTER}|\0)[\s\S])+"  # between two words of a phrase


@dataclass(frozen=True)
class Constraints:
    """Constraints on the words of a caption.

    Whole words are compared, without case and accents: banning "man" also bans "man's" and "man-made", but
    not "woman". A phrase is several words in a row.

    Attributes:
        include: words or phrases to include, anywhere and in any order.
        prefix: words at the start.
        suffix: words at the end.
        ban: banned words or phrases.
        replace: banned words, each with the concept to see in its place (None: no concept).
        min_words: smallest number of words.
        max_chars: largest number of characters.

    Raises:
        DDCapError: if the constraints contradict each other.
    """

    include: tuple[str, ...] = ()
    prefix: str = ""
    suffix: str = ""
    ban: tuple[str, ...] = ()
    replace: Mapping[str, str | None] | None = None
    min_words: int | None = None
    max_chars: int | None = None

    def __post_init__(self) -> None:
        """Read single phrases as several, and refuse what cannot be."""
        for name in ("include", "ban"):
            phrases = [straight(phrase).strip() for phrase in as_texts(name, getattr(self, name))]
            object.__setattr__(self, name, tuple(filter(None, phrases)))
        for name in ("prefix", "suffix"):
            object.__setattr__(self, name, straight(as_text(name, getattr(self, name))))
        for phrase in self.banned:
            if not words_of(phrase):
                raise DDCapError(f"ban {phrase!r}: contains no letter or digit; give words")
        if len(self.include) > MOST_PHRASES:
            raise DDCapError(
                f"include: {len(self.include)} phrases, but at most {MOST_PHRASES} are allowed; remove some"
            )
        for name in ("min_words", "max_chars"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_whole(name, value, 1))
        for name, phrase in self.wanted:
            if not words_of(phrase):
                raise DDCapError(f"{name} {phrase!r}: contains no letter or digit; give words")
            self._check_not_banned(name, phrase)

    def _check_not_banned(self, name: str, phrase: str) -> None:
        found = self.pattern.search(normalised(phrase)) if self.pattern else None
        if found:
            raise DDCapError(
                f"{name} {phrase!r}: contains {found.group().strip()!r}, which is banned; change one of them"
            )

    def check_spelling(self, tokenizer: CaptionTokenizer) -> None:
        """Raise `DDCapError` if a tokenizer cannot spell a word that is wanted or banned."""
        for name, phrase in self.wanted:
            tokenizer.check_spelling(f"{name} {phrase!r}", phrase)
        for name, phrases in (("ban", self.ban), ("neutral", tuple(self.replace or ()))):
            for phrase in phrases if not tokenizer.spells(" ".join(phrases)) else ():
                tokenizer.check_spelling(f"{name} {phrase!r}", phrase)

    def check_kept(self, keep: Sequence[str], caption: str) -> None:
        """Raise `DDCapError` if a caption lacks words that are to be kept, or they are banned."""
        words = set(words_of(caption))
        for phrase in keep:
            missing = [word for word in words_of(phrase) if word not in words]
            if missing or not words_of(phrase):
                lacks = ", ".join(map(repr, missing)) or "it"
                raise DDCapError(f"keep {phrase!r}: the caption does not have {lacks}; correct or remove it")
            self._check_not_banned("keep", phrase)

    @property
    def wanted(self) -> list[tuple[str, str]]:
        """The given words, by name: prefix, suffix and what is to be included."""
        ends = [(name, getattr(self, name).strip()) for name in ("prefix", "suffix")]
        return [*(end for end in ends if end[1]), *(("include", phrase) for phrase in self.include)]

    @property
    def unplaced(self) -> list[str]:
        """Phrases to include that do not stand in the prefix, the suffix or another such phrase."""
        left: list[str] = []
        others = [words_of(self.prefix), words_of(self.suffix)]
        for phrase in sorted(self.include, key=lambda one: -len(words_of(one))):
            if not any(holds(other, words_of(phrase)) for other in others):
                others.append(words_of(phrase))
                left.append(phrase)
        return sorted(left, key=self.include.index)

    @property
    def banned(self) -> tuple[str, ...]:
        """All that is not to stand in a caption."""
        return (*self.ban, *(self.replace or ()))

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Finds what is banned in a normalised text; None: nothing is.

        What stands beside a MASK counts as a whole word. It might still become another one, but only with a
        token that goes on with it, and then that token would be forced.
        """
        spelled = {_APART.join(words_of(phrase)) for phrase in self.banned}
        if not spelled:
            return None
        longest_first = sorted(spelled, key=lambda one: (-len(one), one))
        return re.compile(rf"(?<!{_LETTER})(?:{'|'.join(longest_first)})(?!{_LETTER})")

    @property
    def is_empty(self) -> bool:
        """True if nothing is asked for."""
        return self == Constraints()

    @classmethod
    def take(cls, settings: Mapping[str, Any]) -> tuple[Constraints, dict[str, Any]]:
        """Those among keyword arguments, and the arguments that are none; `neutral` is one of them.

        `neutral` True stands for the list that is shipped, a path for a list of one's own.
        """
        names = {one.name for one in fields(cls)}
        given = {name: value for name, value in settings.items() if name in names and value is not None}
        if settings.get("neutral"):
            given["replace"] = {**neutral_words(settings["neutral"]), **given.get("replace", {})}
        others = {name: value for name, value in settings.items() if name not in {*names, "neutral"}}
        return cls(**given), others

    def edits(self, vocabulary: ConceptVocabulary | None) -> list[ConceptEdits]:
        """Derive edits of the concepts that a model sees: what is wanted is there, what is banned is not."""
        if vocabulary is None or self.is_empty:
            return []
        wanted = [text for _, text in self.wanted]
        replaced = self.replace or {}
        return [ConceptEdits.following(vocabulary, wanted=wanted, banned=self.ban, replaced=replaced)]


def neutral_words(source: bool | str | Path = True) -> dict[str, str | None]:
    """Words that say more of people than a picture shows, and what to say instead.

    Each line of the list is a word, then the word that takes its place, if one does; "#" begins a remark.

    Args:
        source: True for the list that is shipped, or the path of another one.

    Raises:
        DDCapError: if it cannot be read.
    """
    if source is True:
        text = files("ddcap.decoding").joinpath("neutral.txt").read_text(encoding="utf-8")
    else:
        text = read_text(str(source), "neutral")
    pairs: dict[str, str | None] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words:
            pairs[words[0].lower()] = words[1].lower() if len(words) > 1 else None
    return pairs


def banned_in(path: str | Path) -> tuple[str, ...]:
    """The words and phrases of a file, one a line; "#" begins a remark.

    Raises:
        DDCapError: if it cannot be read.
    """
    return listed_lines(path, "ban-file")


def normalised(text: str) -> str:
    """A text without case and accents."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).lower()


def words_of(text: str) -> list[str]:
    """The runs of letters and digits in a text: "a man's" is a, man, s."""
    return _RUN.findall(normalised(text))


def holds(words: Sequence[str], phrase: Sequence[str]) -> bool:
    """Return True if the words of a phrase stand in a row among `words`."""
    size = len(phrase)
    return any(list(words[at : at + size]) == list(phrase) for at in range(len(words) - size + 1))


class Vocabulary:
    """The spelling of each token of a tokenizer; MASK is one character."""

    def __init__(self, tokenizer: CaptionTokenizer) -> None:
        self.tokenizer, self.end_id, self.mask_id = tokenizer, tokenizer.end_id, tokenizer.mask_id

    @cached_property
    def pieces(self) -> list[str]:
        """(V + 1) what each token adds to a text."""
        return [*self.tokenizer.pieces(range(self.tokenizer.vocabulary_size)), _MASK]

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
        return self.begins & np.array([bool(_RUN.search(piece)) for piece in self.plain[:-1]])

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
