"""Things that captions name though none of the image's people does, in the manner of CHAIR.

Source: Rohrbach et al., Object Hallucination in Image Captioning (2018). CHAIR-i is the share of the things
named that are invented, CHAIR-s the share of captions that invent one. A thing is invented if neither the
image's human captions nor its object labels, where there are some, name it by any of its words. The words are
those of `things.txt`, not CHAIR's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ddcap.errors import DataError
from ddcap.evaluation.metrics import MetricScore, bootstrap_interval
from ddcap.files import read_json

KINDS = ("persons", "animals", "vehicles", "furniture", "food", "others")

_PERSON = "person"
_GAP = re.compile(r"[\s-]+")


class Mention(NamedTuple):
    """A thing that a caption names.

    Attributes:
        words: as the caption has them.
        things: what they may mean; more than one where a word is ambiguous ("bike").
        kind: of the first of the things.
    """

    words: str
    things: tuple[str, ...]
    kind: str


# Which words name which things.


class ThingWords:
    """Words and phrases for things, read from text like that of `things.txt`.

    Args:
        text: sections of lines "name: word, phrase/plural, ...".
    """

    def __init__(self, text: str) -> None:
        self.kinds: dict[str, str] = {}
        """Thing to its kind."""
        self._meanings: dict[tuple[str, ...], list[str]] = {}  # no thing at all for the phrases of [nothing]
        self._implied: dict[tuple[str, ...], list[str]] = {}
        self._qualifiers: set[str] = set()
        section = ""
        for line in text.splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line.strip() and not line.startswith("#"):
                name, _, listed = line.partition(":")
                self._add(section, name, [part.strip() for part in listed.split(",")])
        phrases = [*self._meanings, *self._implied]
        self._longest = max(map(len, phrases), default=0)

    def _add(self, section: str, name: str, listed: Sequence[str]) -> None:
        if section == "nothing":
            for form in (form for part in listed for form in _forms(f"{name} {part}")):
                self._meanings.setdefault(form, [])
            return
        if section == "qualifiers":
            self._qualifiers.update(listed)
            return
        target = self._implied if section == "implied" else self._meanings
        if section != "implied":
            self.kinds[name] = section
        for form in (form for part in listed for form in _forms(part)):
            target.setdefault(form, []).append(name)

    def mentions(self, caption: str) -> list[Mention]:
        """The things that a tokenised caption names, in its order.

        Words for one thing side by side ("baby boy") are one mention, and a qualifier directly before another
        thing ("baby elephant", "passenger train") is none.
        """
        found: list[tuple[int, Mention]] = []  # where the next word begins
        words = _GAP.split(caption.strip().lower())
        for start, end in self._phrases(words, self._meanings):
            things = tuple(dict.fromkeys(self._meanings[tuple(words[start:end])]))
            if not things:
                continue
            mention = Mention(" ".join(words[start:end]), things, self.kinds[things[0]])
            if found and found[-1][0] == start:
                before = found[-1][1]
                same = not set(before.things).isdisjoint(things)
                if same or before.words in self._qualifiers:
                    found.pop()
                if same:
                    mention = mention._replace(words=f"{before.words} {mention.words}")
            found.append((end, mention))
        return [mention for _, mention in found]

    def shown(self, caption: str) -> set[str]:
        """The things that a tokenised human caption shows, named or implied ("tennis": a ball)."""
        words = _GAP.split(caption.strip().lower())
        implied = self._phrases(words, self._implied)
        return {
            *(thing for mention in self.mentions(caption) for thing in mention.things),
            *(thing for start, end in implied for thing in self._implied[tuple(words[start:end])]),
        }

    def labelled(self, label: str) -> set[str]:
        """The things that an object label stands for: a thing's name, or any words for it."""
        return self.shown(label) | ({label} & self.kinds.keys())

    def _phrases(
        self, words: Sequence[str], listed: Mapping[tuple[str, ...], Any]
    ) -> Iterable[tuple[int, int]]:
        """Find phrases of the list: begin and end, the longest at each place."""
        start = 0
        while start < len(words):
            sizes = range(min(self._longest, len(words) - start), 0, -1)
            size = next((size for size in sizes if tuple(words[start : start + size]) in listed), 0)
            if size:
                yield start, start + size
            start += max(size, 1)


def _forms(phrase: str) -> list[tuple[str, ...]]:
    """Singular and plural, as words."""
    singular, _, plural = phrase.partition("/")
    return [tuple(singular.split()), tuple((plural or _plural(singular)).split())]


def _plural(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh|[^aeiou]o)$", word) else "s")


@cache
def thing_words() -> ThingWords:
    """The words of `things.txt`."""
    return ThingWords(files("ddcap.evaluation").joinpath("things.txt").read_text(encoding="utf-8"))


# What captions name, and what of it is invented.


@dataclass(frozen=True)
class Row:
    """Things of one kind, or of all.

    Attributes:
        named: of each image, how many its caption names.
        invented: of each image, how many of these nobody else names.
    """

    named: tuple[int, ...]
    invented: tuple[int, ...]

    @property
    def per_mention(self) -> float:
        """CHAIR-i, from 0 to 1."""
        return sum(self.invented) / max(sum(self.named), 1)

    @property
    def per_caption(self) -> float:
        """CHAIR-s, from 0 to 1."""
        return sum(map(bool, self.invented)) / len(self.invented)

    def scores(self) -> dict[str, MetricScore]:
        """Both as metrics."""
        shares = [bad / max(count, 1) for bad, count in zip(self.invented, self.named, strict=True)]
        return {
            "CHAIR-s": MetricScore(self.per_caption, [float(bad > 0) for bad in self.invented]),
            "CHAIR-i": MetricScore(self.per_mention, shares, [float(count) for count in self.named]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times 100."""
        one, other = (self.scores()[name] for name in ("CHAIR-s", "CHAIR-i"))
        return {
            "named": sum(self.named),
            "invented": sum(self.invented),
            "CHAIR-s": round(100 * one.value, 3),
            "CHAIR-s_interval_95": _interval(one),
            "CHAIR-i": round(100 * other.value, 3),
            "CHAIR-i_interval_95": _interval(other),
        }


@dataclass(frozen=True)
class Inventions:
    """Things that the captions of a set of images invent; see `find_inventions`.

    Attributes:
        named: of each image, what its caption names.
        known: of each image, what its human captions and labels show.
        persons_seen: of each image, the share of its human captions that name a person.
        labelled: number of images with object labels.
    """

    named: tuple[tuple[Mention, ...], ...]
    known: tuple[frozenset[str], ...]
    persons_seen: tuple[float, ...]
    labelled: int

    def row(self, kind: str | None = None) -> Row:
        """Counts of one kind; of all for None."""
        of_kind = [[one for one in each if kind in (None, one.kind)] for each in self.named]
        invented = [
            sum(known.isdisjoint(one.things) for one in each)
            for each, known in zip(of_kind, self.known, strict=True)
        ]
        return Row(tuple(map(len, of_kind)), tuple(invented))

    def metric(self, *_: Any) -> dict[str, MetricScore]:
        """CHAIR-s and CHAIR-i over all kinds, as `metrics.score_tokenized` calls a metric."""
        return self.row().scores()

    @cached_property
    def given_persons(self) -> list[bool]:
        """Of every image without a person: does its caption name one?"""
        pairs = zip(self.named, self.known, strict=True)
        return [names_person(named) for named, known in pairs if _PERSON not in known]

    @cached_property
    def lost_persons(self) -> list[bool]:
        """Of every image of which most human captions name a person: does its caption name none?"""
        pairs = zip(self.named, self.persons_seen, strict=True)
        return [not names_person(named) for named, share in pairs if share > 0.5]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; scores and intervals times 100."""
        return {
            "all": self.row().to_dict(),
            **{kind: self.row(kind).to_dict() for kind in KINDS},
            "given_persons": _share_to_dict(self.given_persons),
            "lost_persons": _share_to_dict(self.lost_persons),
            "labelled_images": self.labelled,
        }

    def to_text(self, human: Inventions | None = None) -> str:
        """A table of kinds, and what became of persons; CHAIR-i of people in the last column."""
        head = (
            f"{'invented':<12} {'number':>6} {'named':>6} {'CHAIR-i':>8} {'95 % interval':>15} {'CHAIR-s':>8}"
        )
        lines = [head + (f" {'human':>7}" if human else "")]
        for kind in KINDS:
            row = self.row(kind)
            low, high = _interval(row.scores()["CHAIR-i"])
            line = (
                f"{kind:<12} {sum(row.invented):>6} {sum(row.named):>6} {100 * row.per_mention:8.1f} "
                f"{f'[{low:.1f}, {high:.1f}]':>15} {100 * row.per_caption:8.1f}"
            )
            lines.append(line + (f" {100 * human.row(kind).per_mention:7.1f}" if human else ""))
        for flags, what in (
            ("given_persons", "images without a person given one"),
            ("lost_persons", "images of persons that lost them"),
        ):
            beside = f"; human {_of(getattr(human, flags))}" if human else ""
            lines.append(f"{what}: {_of(getattr(self, flags))}{beside}")
        known = f"; object labels of {self.labelled} images count too" if self.labelled else ""
        return "\n".join([*lines, f"invented: named by none of the image's references{known}"])


def find_inventions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    objects: Mapping[str, Sequence[str]] | None = None,
) -> Inventions:
    """Compare the things that captions name with those that people and labels name.

    Args:
        captions: image id to the tokenised caption, at least one.
        references: image id to tokenised human captions; covers `captions`.
        objects: image id to the objects that are known to be there, of as many images as there are.
    """
    words, labels = thing_words(), objects or {}
    people = {image: [words.shown(text) for text in references[image]] for image in captions}
    seen = [
        frozenset(chain(*people[image], *(words.labelled(label) for label in labels.get(image, ()))))
        for image in captions
    ]
    return Inventions(
        named=tuple(tuple(words.mentions(caption)) for caption in captions.values()),
        known=tuple(seen),
        persons_seen=tuple(
            sum(names_person(words.mentions(text)) for text in references[image]) / len(references[image])
            for image in captions
        ),
        labelled=sum(image in labels for image in captions),
    )


def load_objects(path: str | Path) -> dict[str, list[str]]:
    """Image id to names of objects, from `{"image id": ["person", "dog"], ...}`.

    Raises:
        DataError: if the file is missing or something else, or no name in it is a word for a thing.
    """
    remedy = 'give an object of image ids and lists of names, {"42": ["person", "dog"]}'
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not an object; {remedy}")
    for image, names in content.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path}: image {image!r} has no list of names; {remedy}")
    given = {name for names in content.values() for name in names}
    if given and not any(thing_words().labelled(name) for name in given):
        raise DataError(
            f"{path}: none of its names is known, not even {min(given)!r}; give COCO's categories"
        )
    return content


def names_person(mentions: Iterable[Mention]) -> bool:
    """Return True if one of a caption's mentions is a person."""
    return any(_PERSON in mention.things for mention in mentions)


def _interval(score: MetricScore) -> list[float]:
    low, high = bootstrap_interval(score.per_image or [], weights=score.weights)
    return [round(100 * low, 2), round(100 * high, 2)]


def _share_to_dict(flags: Sequence[bool]) -> dict[str, Any]:
    return {
        "images": len(flags),
        "captions": sum(flags),
        "share": round(sum(flags) / len(flags), 4) if flags else None,
        "interval_95": [round(end, 4) for end in bootstrap_interval(flags)] if flags else None,
    }


def _of(flags: Sequence[bool]) -> str:
    if not flags:
        return "0 of 0"
    low, high = bootstrap_interval(flags)
    return f"{sum(flags)} of {len(flags)}, {sum(flags) / len(flags):.1%} [{100 * low:.1f}, {100 * high:.1f}]"
