"""Constraints on the words of a caption, as a person asks for them. Not in the paper.

`decoding/allowed_tokens.py` says which tokens they leave.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from ddcap.data.concepts import ConceptEdits, ConceptVocabulary
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.words import straight
from ddcap.errors import DDCapError
from ddcap.files import listed_lines, read_text
from ddcap.values import as_text, as_texts, as_whole

MOST_PHRASES = 8  # of one caption; each is placed by a pass of its own
MASK = "\0"  # stands for a MASK in a text
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
    """Words that say more of people than an image shows, and what to say instead.

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
