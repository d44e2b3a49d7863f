"""Concepts: the words for what can be seen, who sees which, and how a tokenizer spells them.

Shapes: I images, K concepts of each, N concepts known; B captions, L positions, F words in all their forms, V
words of the tokenizer.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import CheckpointError, DDCapError
from ddcap.files import write_text
from ddcap.values import as_texts

# Concepts: the words for what can be seen, and which of them an image or its captions show.

FILE_NAME = "concepts.json"

NO_CONCEPT = -1
"""What fills up the rows of images with fewer concepts than others."""

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


@dataclass(frozen=True)
class ConceptTokens:
    """The concepts of images: arrays of numpy or torch.

    Attributes:
        ids: (I, K) numbers of concepts, `NO_CONCEPT` where there are fewer.
        confidences: (I, K) probability of each that a person would name it.
    """

    ids: Array
    confidences: Array

    def to(self, device: Any, non_blocking: bool = False) -> ConceptTokens:
        """The same concepts, which are tensors, on `device`."""
        return ConceptTokens(
            self.ids.to(device, non_blocking=non_blocking),
            self.confidences.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class ConceptRates:
    """Rates at which people name each concept, in all images and in those whose tags lack it.

    Attributes:
        prior: (N,) mean share of an image's captions that name it.
        unlisted: (N,) the same where it is not among the K concepts of the image.
    """

    prior: np.ndarray
    unlisted: np.ndarray

    @classmethod
    def of(cls, prior: Sequence[float], unlisted: Sequence[float]) -> ConceptRates:
        """From plain numbers."""
        rates = cls(np.array(prior, dtype=np.float32), np.array(unlisted, dtype=np.float32))
        if not (rates.prior > 0).all() or not (rates.unlisted > 0).all():
            raise ValueError("rates must be positive")
        return rates

    def to_dict(self) -> dict[str, list[float]]:
        """Plain numbers, of two digits: files need no more."""
        return {name: [float(f"{rate:.2g}") for rate in rates] for name, rates in vars(self).items()}

    @classmethod
    def measure(cls, ids: np.ndarray, named: np.ndarray) -> ConceptRates:
        """Of images whose captions are known and that the tagger has not seen.

        A concept that is rarely unlisted, or rarely named, is taken for one that its absence says little of.

        Args:
            ids: (R, K) concepts listed for each image; `NO_CONCEPT` where there are fewer.
            named: (R, N) share of each image's captions that name a concept.
        """
        images, concepts = named.shape
        is_listed = np.zeros((images, concepts + 1), dtype=bool)
        np.put_along_axis(is_listed, np.where(ids == NO_CONCEPT, concepts, ids), True, axis=1)
        is_unlisted = ~is_listed[:, :concepts]
        prior = (named.sum(axis=0) + _LEAST_RATE) / (images + 1)
        without = (named * is_unlisted).sum(axis=0) + _PRIOR_IMAGES * prior
        unlisted = without / (is_unlisted.sum(axis=0) + _PRIOR_IMAGES)
        return cls(prior.astype(np.float32), np.minimum(unlisted, prior).astype(np.float32))


_LEAST_RATE = 0.01  # of an image's captions, beside those that are counted
_PRIOR_IMAGES = 20  # that a concept's rate is mixed with, named as often as everywhere


class ConceptVocabulary:
    """The words that stand for concepts, and the forms in which captions use them.

    Args:
        words: one for each concept, in the order of their numbers.
        forms: other spellings (dogs, sitting) to the word they stand for.
        rates: of the concepts; None where they were not measured.
        persons: the words that are persons, for a model with a detector of these.
    """

    def __init__(
        self,
        words: Sequence[str],
        forms: Mapping[str, str],
        rates: ConceptRates | None = None,
        persons: Sequence[str] = (),
    ) -> None:
        self.words = tuple(words)
        self.forms = dict(forms)
        self.rates = rates
        self.persons = tuple(persons)
        number = {word: index for index, word in enumerate(self.words)}
        self._number = {**{form: number[word] for form, word in forms.items()}, **number}

    def __len__(self) -> int:
        """N."""
        return len(self.words)

    def number(self, word: str) -> int | None:
        """The concept that a word in any of its forms stands for; None if it stands for none."""
        return self._number.get(word.strip().lower())

    def find(self, caption: str) -> list[int]:
        """The concepts that a caption names, each once, in the order in which they are named."""
        numbers = (self._number.get(word) for word in _WORD.findall(caption.lower().replace("'s", "")))
        return list(dict.fromkeys(number for number in numbers if number is not None))

    def shares(self, captions: Sequence[str]) -> dict[int, float]:
        """The concepts that captions of one image name, with the share of the captions that do."""
        shares: dict[int, float] = {}
        for caption in captions:
            for concept in self.find(caption):
                shares[concept] = shares.get(concept, 0.0) + 1 / len(captions)
        return shares

    @classmethod
    def load(cls, folder: str | Path) -> ConceptVocabulary:
        """Read `concepts.json` from a folder.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        path = Path(folder) / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            rates = values.get("rates")
            known = None if rates is None else ConceptRates.of(**rates)
            persons = values.get("persons", ())
            if not {*persons} <= {*values["words"]}:
                raise ValueError("persons must be words")
            return cls(values["words"], values["forms"], known, persons)
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file; a model with concepts needs it, copy the model again"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{path}: damaged; copy the model again") from None

    def save(self, folder: str | Path) -> None:
        """Write `concepts.json` into `folder`."""
        values: dict[str, Any] = {"words": list(self.words), "forms": self.forms}
        if self.rates is not None:
            values["rates"] = self.rates.to_dict()
        if self.persons:
            values["persons"] = list(self.persons)
        write_text(Path(folder) / FILE_NAME, json.dumps(values))


def stack_concepts(rows: Iterable[Iterable[tuple[int, float]]], size: int) -> ConceptTokens:
    """Rows of (concept, confidence) as I x `size` arrays of numpy, filled up with `NO_CONCEPT`."""
    filled = [[*row][:size] for row in rows]
    filled = [row + [(NO_CONCEPT, 0.0)] * (size - len(row)) for row in filled]
    return ConceptTokens(
        np.array([[concept for concept, _ in row] for row in filled], dtype=np.int64).reshape(-1, size),
        np.array([[confidence for _, confidence in row] for row in filled], np.float32).reshape(-1, size),
    )


# What a person says of an image's concepts: which are there, and which are not.

_CERTAIN = 0.95  # what a person says; a tagger is hardly ever surer


@dataclass(frozen=True)
class ConceptEdits:
    """Changes to the concepts seen in images.

    Attributes:
        replaces: whether `added` are all the concepts there are.
        added: numbers of concepts that are there.
        removed: numbers of concepts that are not there.
        renamed: pairs of a concept, and the one to see in its place.
        tells_of_persons: whether it says that persons are there, or are not.
    """

    replaces: bool
    added: tuple[int, ...]
    removed: tuple[int, ...]
    renamed: tuple[tuple[int, int], ...] = ()
    tells_of_persons: bool = False

    @classmethod
    def parse(cls, words: str | Iterable[str], vocabulary: ConceptVocabulary | None) -> ConceptEdits:
        """Read "cat, window" (these and no others), or "+cat, -dog" (changes to what is seen).

        Raises:
            DDCapError: if a word is no concept of the model, plain words stand beside signed ones, or the
                model (`vocabulary` None) sees no concepts.
        """
        if vocabulary is None:
            raise DDCapError("concepts: this model sees none; remove them, or use a model with a tagger")
        listed = words.split(",") if isinstance(words, str) else as_texts("concepts", words)
        listed = [word.strip() for word in listed if word.strip()]
        signed = [word for word in listed if word[0] in "+-"]
        if signed and len(signed) < len(listed):
            plain = next(word for word in listed if word[0] not in "+-")
            raise DDCapError(
                f"concepts: {plain!r} has no sign but {signed[0]!r} has; put + or - before all words, or none"
            )
        added = tuple(_number(word, vocabulary) for word in listed if word[0] != "-")
        removed = tuple(_number(word, vocabulary) for word in listed if word[0] == "-")
        tells = not signed or _any_person(added, vocabulary)
        return cls(not signed, added, removed, tells_of_persons=tells)

    @classmethod
    def following(
        cls,
        vocabulary: ConceptVocabulary,
        *,
        wanted: Iterable[str],
        banned: Iterable[str],
        replaced: Mapping[str, str | None],
    ) -> ConceptEdits:
        """Derive edits of the concepts from words that a caption is to say and words that it must not.

        Args:
            vocabulary: of the model.
            wanted: texts that stand in the caption.
            banned: words and phrases that do not.
            replaced: words that do not, and the words to see in their place.
        """
        added = tuple(dict.fromkeys(number for text in wanted for number in vocabulary.find(text)))
        numbers = (vocabulary.number(phrase) for phrase in banned)
        removed = tuple(number for number in numbers if number is not None and number not in added)
        pairs = [(vocabulary.number(word), vocabulary.number(new or "")) for word, new in replaced.items()]
        renamed = tuple(
            dict.fromkeys(
                (old, new) for old, new in pairs if old is not None and new is not None and old != new
            )
        )
        return cls(False, added, removed, renamed, _any_person(added, vocabulary))

    def apply(self, seen: ConceptTokens) -> ConceptTokens:
        """The concepts of images as they are after the changes, as many at most as before."""
        rows, names = [], dict(self.renamed)
        gone = {*self.added, *self.removed, NO_CONCEPT}
        for ids, confidences in zip(seen.ids.tolist(), seen.confidences.tolist(), strict=True):
            found: dict[int, float] = {}  # the surer of two that become one comes first
            for concept, confidence in zip(ids, confidences, strict=True):
                found.setdefault(names.get(concept, concept), confidence)
            kept = [pair for pair in found.items() if pair[0] not in gone]
            said = [(concept, _CERTAIN) for concept in self.added]
            rows.append(said if self.replaces else said + kept)
        changed = stack_concepts(rows, seen.ids.shape[1])
        return ConceptTokens(like(changed.ids, seen.ids), like(changed.confidences, seen.ids))


def _any_person(numbers: Iterable[int], vocabulary: ConceptVocabulary) -> bool:
    return any(vocabulary.words[number] in vocabulary.persons for number in numbers)


def _number(word: str, vocabulary: ConceptVocabulary) -> int:
    bare = word.lstrip("+-").strip()
    number = vocabulary.number(bare)
    if number is None:
        near = difflib.get_close_matches(bare.lower(), vocabulary.words, n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "use a common noun, verb or colour"
        raise DDCapError(f"concepts: this model does not know {bare!r}; {remedy}")
    return number


# How a tokenizer spells the words of concepts: what tells from tokens which concepts a caption names.

LONGEST = 6  # tokens of a word; longer ones, which are rare, are not recognised
NO_PIECE = -1


@dataclass(frozen=True)
class ConceptSpelling:
    """The tokens of the forms of concepts' words.

    Attributes:
        pieces: (F, LONGEST) token ids, `NO_PIECE` behind a shorter word.
        concept: (F,) which concept each stands for.
        group: (V + 2,) for each token the group of words that it begins.
        beginning: (G, M) the words of each group; F is none.
        continues: (V + 2,) True for tokens that go on with a word; not for MASK, V, nor for what follows.
        concepts: N.
        prior: (N,) of `ConceptRates`; None where they were not measured.
        unlisted: (N,) likewise.
        persons: (N,) True for concepts that are persons; None for a model without a detector of these.
    """

    pieces: Array
    concept: Array
    group: Array
    beginning: Array
    continues: Array
    concepts: int
    prior: Array | None = None
    unlisted: Array | None = None
    persons: Array | None = None

    @classmethod
    def of(cls, vocabulary: ConceptVocabulary, tokenizer: CaptionTokenizer) -> ConceptSpelling:
        """Spell all words of a vocabulary, as in the middle of a caption."""
        pieces, concepts = [], []
        for form in {**dict.fromkeys(vocabulary.words), **vocabulary.forms}:
            concept, ids = vocabulary.number(form), tokenizer.encode_part(form)
            if concept is not None and len(ids) <= LONGEST:
                pieces.append(ids + [NO_PIECE] * (LONGEST - len(ids)))
                concepts.append(concept)
        texts = tokenizer.pieces(range(tokenizer.vocabulary_size))
        goes_on = [text[:1].isalnum() or text[:1] == "-" for text in texts]
        rates, persons = vocabulary.rates, vocabulary.persons
        prior, unlisted = (None, None) if rates is None else (rates.prior, rates.unlisted)
        table = np.array(pieces, dtype=np.int64).reshape(-1, LONGEST)
        return cls(
            table,
            np.array(concepts, dtype=np.int64),
            *_by_first_token(table[:, 0], len(goes_on) + 2),
            np.array([*goes_on, False, False]),
            len(vocabulary),
            prior,
            unlisted,
            np.array([word in persons for word in vocabulary.words]) if persons else None,
        )

    def like(self, array: Array) -> ConceptSpelling:
        """These arrays of numpy as what `array` is: numpy's, or tensors on its device; made once for each."""
        key = type(array), device(array)
        if key not in self._copies:
            parts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "concepts"}
            copies = {name: None if part is None else like(part, array) for name, part in parts.items()}
            self._copies[key] = ConceptSpelling(**copies, concepts=self.concepts)
        return self._copies[key]

    @cached_property
    def _copies(self) -> dict[Any, ConceptSpelling]:
        return {}

    @property
    def first(self) -> Array:
        """(F,) the token that a word begins with."""
        return self.pieces[:, 0]

    @property
    def is_one_token(self) -> Array:
        """(F,) whether the first token is all of the word."""
        return self.pieces[:, 1] == NO_PIECE

    @cached_property
    def one_token_forms(self) -> Array:
        """(f,) the words of one token."""
        places: Array = array_namespace(self.pieces).nonzero(self.is_one_token)[0]
        return places

    @cached_property
    def _and_none(self) -> tuple[Array, Array, Array]:
        """`pieces`, how many these are, and `concept`, each with one more for no word."""
        xp, on = array_namespace(self.pieces), device(self.pieces)
        no_pieces = xp.full((1, LONGEST), NO_PIECE, dtype=xp.int64, device=on)
        pieces = xp.concat([self.pieces, no_pieces], axis=0)
        concept = xp.concat([self.concept, xp.full((1,), self.concepts, dtype=xp.int64, device=on)], axis=0)
        return pieces, xp.sum(xp.astype(pieces != NO_PIECE, xp.int64), axis=1), concept

    def named(self, tokens: Array, mask_id: int) -> Array:
        """(B, N) True for the concepts that captions (B, L) name; of a begun word a MASK may be the rest."""
        xp, (captions, length) = array_namespace(tokens), tokens.shape
        pieces, sizes, concept = self._and_none
        forms = self.beginning[self.group[tokens]]  # (B, L, M) words that begin with the token
        behind = xp.full((captions, LONGEST), mask_id + 1, dtype=tokens.dtype, device=device(tokens))
        padded = xp.concat([tokens, behind], axis=1)
        windows = xp.stack([padded[:, place : place + length] for place in range(LONGEST + 1)], axis=-1)
        seen, rest = windows[:, :, None, 1:LONGEST], pieces[forms][..., 1:]  # (B, L, M, LONGEST - 1)
        is_there = xp.all((seen == rest) | (seen == mask_id) | (rest == NO_PIECE), axis=-1)
        next_one = xp.take_along_axis(self.continues[windows], sizes[forms], axis=2)
        found = xp.where(is_there & ~next_one, concept[forms], self.concepts)  # "cat" is not named by "catch"
        named = xp.zeros((captions, self.concepts + 1), dtype=xp.bool, device=device(tokens))
        named[xp.arange(captions, device=device(tokens))[:, None], xp.reshape(found, (captions, -1))] = True
        return named[:, : self.concepts]


def _by_first_token(first: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """`group` (tokens,) and `beginning` (G, M) of words by `first` (F,); the last group has none."""
    begins, group, count = np.unique(first, return_inverse=True, return_counts=True)
    beginning = np.full((len(begins) + 1, max(1, count.max(initial=0))), len(first))
    order = np.argsort(group, kind="stable")
    beginning[group[order], np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)] = order
    group_of = np.full(tokens, len(begins))
    group_of[begins] = np.arange(len(begins))
    return group_of, beginning
