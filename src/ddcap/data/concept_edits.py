"""What a person says of a picture's concepts: which are there, and which are not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from ddcap.data.concepts import NO_CONCEPT, ConceptTokens, ConceptVocabulary, stack_concepts
from ddcap.errors import DDCapError

_CERTAIN = 0.95  # what a person says; a tagger is hardly ever surer


@dataclass(frozen=True)
class ConceptEdits:
    """Changes to the concepts seen in pictures.

    Attributes:
        replaces: whether `added` are all the concepts there are.
        added: numbers of concepts that are there.
        removed: numbers of concepts that are not there.
    """

    replaces: bool
    added: tuple[int, ...]
    removed: tuple[int, ...]

    @classmethod
    def parse(cls, words: str | Iterable[str], vocabulary: ConceptVocabulary | None) -> ConceptEdits:
        """Read "cat, window" (these and no others), or "+cat, -dog" (changes to what is seen).

        Raises:
            DDCapError: if a word is no concept of the model, plain words stand beside signed ones, or the
                model (`vocabulary` None) sees no concepts.
        """
        if vocabulary is None:
            raise DDCapError("this model sees no concepts: leave them out, or use a model with a tagger")
        listed = words.split(",") if isinstance(words, str) else list(words)
        listed = [word.strip() for word in listed if word.strip()]
        signed = [word for word in listed if word[0] in "+-"]
        if signed and len(signed) < len(listed):
            plain = next(word for word in listed if word[0] not in "+-")
            raise DDCapError(f"concepts: {plain!r} beside {signed[0]!r}; give all of them a + or -, or none")
        added = tuple(_number(word, vocabulary) for word in listed if word[0] != "-")
        removed = tuple(_number(word, vocabulary) for word in listed if word[0] == "-")
        return cls(not signed, added, removed)

    def apply(self, seen: ConceptTokens) -> ConceptTokens:
        """The concepts of pictures as they are after the changes, as many at most as before."""
        rows = []
        for ids, confidences in zip(seen.ids.tolist(), seen.confidences.tolist(), strict=True):
            gone = {*self.added, *self.removed, NO_CONCEPT}
            kept = [pair for pair in zip(ids, confidences, strict=True) if pair[0] not in gone]
            said = [(concept, _CERTAIN) for concept in self.added]
            rows.append(said if self.replaces else said + kept)
        return stack_concepts(rows, seen.ids.shape[1]).to(seen.ids.device)


def _number(word: str, vocabulary: ConceptVocabulary) -> int:
    bare = word.lstrip("+-").strip()
    number = vocabulary.number(bare)
    if number is None:
        near = difflib.get_close_matches(bare.lower(), vocabulary.words, n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "use a plain noun, verb or colour"
        raise DDCapError(f"concepts: this model does not know {bare!r}; {remedy}")
    return number
