"""Concepts: the words for what can be seen, and which of them a picture or its captions show.

Shapes: I images, K concepts of each, N concepts known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddcap.errors import CheckpointError
from ddcap.files import write_text

FILE_NAME = "concepts.json"

NO_CONCEPT = -1
"""What fills up the rows of pictures with fewer concepts than others."""

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


@dataclass(frozen=True)
class ConceptTokens:
    """Which concepts pictures show.

    Attributes:
        ids: (I, K) numbers of concepts, `NO_CONCEPT` where there are fewer.
        confidences: (I, K) probability of each that a person would name it.
    """

    ids: Tensor
    confidences: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ConceptTokens:
        """The same concepts on `device`."""
        return ConceptTokens(
            self.ids.to(device, non_blocking=non_blocking),
            self.confidences.to(device, non_blocking=non_blocking),
        )


class ConceptVocabulary:
    """The words that stand for concepts, and the forms in which captions use them.

    Args:
        words: one for each concept, in the order of their numbers.
        forms: other spellings (dogs, sitting) to the word they stand for.
    """

    def __init__(self, words: Sequence[str], forms: Mapping[str, str]) -> None:
        self.words = tuple(words)
        self.forms = dict(forms)
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
        """The concepts that captions of one picture name, with the share of the captions that do."""
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
            return cls(values["words"], values["forms"])
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file; a model that sees concepts needs their words"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{path}: damaged; copy the model again") from None

    def save(self, folder: str | Path) -> None:
        """Write `concepts.json` into `folder`."""
        values = {"words": list(self.words), "forms": self.forms}
        write_text(Path(folder) / FILE_NAME, json.dumps(values))


def stack_concepts(rows: Iterable[Iterable[tuple[int, float]]], size: int) -> ConceptTokens:
    """Rows of (concept, confidence) as I x `size` tensors, filled up with `NO_CONCEPT`."""
    filled = [[*row][:size] for row in rows]
    filled = [row + [(NO_CONCEPT, 0.0)] * (size - len(row)) for row in filled]
    return ConceptTokens(
        torch.tensor([[concept for concept, _ in row] for row in filled]),
        torch.tensor([[confidence for _, confidence in row] for row in filled]),
    )
