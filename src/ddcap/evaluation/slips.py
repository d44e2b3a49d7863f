"""Slips of English in captions, found by plain rules on words; docs/evaluation.md lists the rules.

The rules know closed classes of words and a few nouns and adjectives, and no grammar. They are made to miss
slips rather than to blame good English: on human captions they should hardly ever fire.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_A = frozenset({"a", "an"})
_ARTICLES = _A | {"the"}
_DETERMINERS = _ARTICLES | _set("this these those his her its their my our your some every each")
_NUMBERS = _set("two three four five six seven eight nine ten several many few")
_CONJUNCTIONS = _set("and or but while as")
_BE = _set("is are was were be being been")
_PREPOSITIONS = _set(
    """about above across after against along alongside among amongst around at before behind below beneath
    beside between beyond by down during for from in inside into near next of off on onto out
    outside over past through to toward towards under underneath until up upon with within without"""
)
_FUNCTION_WORDS = (
    _DETERMINERS
    | _NUMBERS
    | _CONJUNCTIONS
    | _BE
    | _PREPOSITIONS
    | _set(
        """one another other others he she it they them him himself herself itself themselves who whom whose
    which that there here what where when how has have had having do does not no all both some any
    so very too also just only then than 's n't front top side back middle left right together each"""
    )
)

# after an article these show that its noun is missing; "in", "on", "by" and "to" may begin a compound ("an
# in ground pool")
_NO_NOUN_HERE = _set("is are was were of with at from and or that which while for into onto")
_NO_NOUN_BEHIND = _NO_NOUN_HERE - {"and", "or"} | {"in", "on", "who", "near", "behind", "under", "by", "to"}
_NEVER_LAST = _ARTICLES | {"of", "and", "or", "but", "while", "his", "their", "its", "very", "is", "are"}
_LAST_ONLY_IN_CLAUSES = _set("at with from into onto against between among")
# no more than colours and sizes: most others are nouns as well ("the dark", "a little", "an orange")
_ADJECTIVES = _set(
    """black white brown red blue green yellow gray grey pink purple beige blond large small big tall huge
    tiny young wooden"""
)

_IRREGULAR_PLURALS = _set("men women children people mice geese feet teeth knives")
_SINGULAR_IN_S = _set(
    """lens gas canvas christmas news series species crossroads headquarters means barracks overpass atlas
    texas dallas vegas pancreas yes always outdoors indoors upwards downwards backwards towards
    sometimes perhaps bmx pus les das los"""
)
_VESSELS = _set("cup glass bowl plate bottle mug box bag pot basket")
_PLACES = _set(
    """room bedroom bathroom kitchen office hallway restaurant street road sidewalk beach field park yard
    sky ocean lake city town airport"""
)
_BODILY = _set("""sitting standing lying laying walking running holding wearing riding sits stands""")
_SAID_TWICE = _set("very really so bye go ha no many knock had that choo dum tom pom")
_OVER_AND_OVER = _set("over more up round again around on out by through down side")


def _word_twice(words: Sequence[str]) -> bool:
    """Up to four words right after themselves, or one with an adjective between ("a white dog brown dog")."""
    if any(one == other and one not in _SAID_TWICE for one, other in pairwise(words)):
        return True
    for size in range(2, 5):
        if any(
            words[start : start + size] == words[start + size : start + 2 * size]
            for start in range(len(words) - 2 * size + 1)
        ):
            return True
    triples = zip(words, words[1:], words[2:], strict=False)
    return any(
        first == last and middle in _ADJECTIVES and first not in _FUNCTION_WORDS | _ADJECTIVES
        for first, middle, last in triples
    )


def _joined_to_itself(words: Sequence[str]) -> bool:
    """A word joined to itself: "X and X", "a X and a X", "X of X", "a X next to a X"."""
    for place in range(1, len(words) - 1):
        joined = 2 if words[place : place + 2] == ["next", "to"] else words[place] in ("and", "or", "of")
        if not joined:
            continue
        before, behind = words[place - 1], words[place + joined : place + joined + 2]
        if behind[:1] and behind[0] in _ARTICLES:
            behind = behind[1:]
        if behind[:1] == [before] and before not in _OVER_AND_OVER | _FUNCTION_WORDS:
            return True
    return False


def _article(words: Sequence[str]) -> bool:
    """An article before another determiner, or "a" before a plural, with a number between or not."""
    for place, word in enumerate(words[:-1]):
        behind = [*words[place + 1 : place + 4], "", ""]
        if word in _ARTICLES and behind[0] in _DETERMINERS - {"every", "each", "some"}:
            return True
        if word in _A:
            number = behind[0] in _NUMBERS - {"few", "many", "several"}
            noun, following = behind[number : number + 2]
            # "a sports car", "a women 's team": what begins a compound is no slip
            if _is_plural(noun) and (not following or following in _NO_NOUN_BEHIND | {"and"}):
                return True
    return False


def _no_noun(words: Sequence[str]) -> bool:
    """A noun is missing: behind an article or "a brown", or at the end ("is sitting on a")."""
    if not words:
        return False
    if words[-1] in _NEVER_LAST or (
        words[-1] in _LAST_ONLY_IN_CLAUSES and not {"to", "being", "that"} & set(words[:-1])
    ):
        return True
    for place, word in enumerate(words):
        if word not in _ARTICLES:
            continue
        end = place + 1
        if words[end] in _NO_NOUN_HERE:
            return True
        while end < len(words) and (words[end] in _ADJECTIVES or (words[end] == "and" and end > place + 1)):
            end += 1
        described = end > place + 1 and words[end - 1] in _ADJECTIVES and word in _A
        if described and (end == len(words) or words[end] in _NO_NOUN_BEHIND):
            return True
    return False


def _place_that_sits(words: Sequence[str]) -> bool:
    """A place that does what a body does: "a bedroom is sitting in a living room"."""
    for place, word in enumerate(words[:5]):
        if word in _PREPOSITIONS | _BE | _CONJUNCTIONS:
            return False
        if word in _PLACES:
            behind = [one for one in words[place + 1 : place + 3] if one not in _BE]
            return bool(behind) and words[place + 1] in _BE | _BODILY and behind[0] in _BODILY
    return False


def _vessel_of_vessel(words: Sequence[str]) -> bool:
    """One thing under two names: "a cup of coffee mug"."""
    fours = zip(words, words[1:], words[3:], strict=False)
    return any(one in _VESSELS and of == "of" and other in _VESSELS for one, of, other in fours)


RULES: dict[str, Callable[[Sequence[str]], bool]] = {
    "word twice": _word_twice,
    "joined to itself": _joined_to_itself,
    "article": _article,
    "no noun": _no_noun,
    "place that sits": _place_that_sits,
    "vessel of vessel": _vessel_of_vessel,
}
"""Name of a rule to a function that tells whether a caption's words break it."""


def slips_of(words: Sequence[str]) -> list[str]:
    """Names of the rules that a caption breaks; `words` in lower case, without punctuation."""
    return [name for name, breaks in RULES.items() if breaks(words)]


def repeats_content(words: Sequence[str]) -> bool:
    """Return True if a word that is no function word occurs twice; good English may do that."""
    return max(Counter(word for word in words if word not in _FUNCTION_WORDS).values(), default=0) > 1


@dataclass(frozen=True)
class Slips:
    """Shares of captions with slips.

    Attributes:
        any: share of captions that break a rule.
        each: rule to the share of captions that break it.
        repeated_content: share with a content word twice; is no slip by itself.
    """

    any: float
    each: dict[str, float]
    repeated_content: float

    @classmethod
    def count(cls, captions: Iterable[Sequence[str]]) -> Slips:
        """Look at captions (at least one), given as words."""
        captions = list(captions)
        found = [slips_of(words) for words in captions]
        broken = Counter(name for names in found for name in names)
        return cls(
            any=sum(map(bool, found)) / len(captions),
            each={name: broken[name] / len(captions) for name in RULES},
            repeated_content=sum(map(repeats_content, captions)) / len(captions),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; shares from 0 to 1."""
        return {
            "any": round(self.any, 4),
            **{name.replace(" ", "_"): round(share, 4) for name, share in self.each.items()},
            "repeated_content_word": round(self.repeated_content, 4),
        }

    def to_text(self) -> str:
        """A part of a line."""
        broken = ", ".join(f"{name} {share:.1%}" for name, share in self.each.items() if share)
        return f"{self.repeated_content:.1%} a content word, {self.any:.1%} with a slip" + (
            f" ({broken})" if broken else ""
        )


def _is_plural(word: str) -> bool:
    if word in _IRREGULAR_PLURALS:
        return True
    return bool(re.search(r"([^suio']s|ies|oes)$", word)) and word not in _SINGULAR_IN_S
