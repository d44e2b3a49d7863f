"""Tags for captions without pictures: wrong as often, and in the same way, as those of pictures are.

A tagger's list is a row of confidences, and a confidence says how often such a tag is right. So a list for a
caption takes the confidences of a real picture's list; each becomes a concept that the captions name with
that probability, and else one of those that are seen by mistake beside what is there.

Shapes: R pictures, N concepts, K tags of a picture, C confusions kept of each concept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddcap.errors import CheckpointError
from ddcap.files import replacing
from ddcap.model.tagger import strongest

FILE_NAME = "concept_noise.safetensors"

_CONFUSIONS = 12
_PRIOR = 5.0  # pictures that a concept's rates are mixed with, those of all concepts


@dataclass(frozen=True)
class ConceptNoise:
    """What tags of pictures are like.

    Attributes:
        confidences: (R, K) of the pictures' tags, highest first, 0 where there are fewer.
        found: (N,) how much of what captions name of a concept is among the tags.
        mistaken: (N,) share of all wrong tags.
        confused: (N, C) concepts most often seen by mistake beside each.
    """

    confidences: np.ndarray
    found: np.ndarray
    mistaken: np.ndarray
    confused: np.ndarray

    @classmethod
    def measure(cls, probabilities: Tensor, named: Tensor, count: int) -> ConceptNoise:
        """Of pictures whose captions are known.

        Args:
            probabilities: (R, N) by taggers that have not seen the pictures.
            named: (R, N) share of each picture's captions that name a concept.
            count: K.
        """
        tags = strongest(probabilities, count)
        ids, confidences = tags.ids.clamp(min=0), tags.confidences
        listed = torch.zeros_like(probabilities).scatter_(1, ids, confidences)
        found = ((listed * named).sum(dim=0) + _PRIOR * 0.1) / (named.square().sum(dim=0) + _PRIOR * 0.3)
        wrong = listed * (1 - named)
        beside = named.T @ wrong  # (N, N): how much of each is wrongly seen where another is
        beside.fill_diagonal_(0)
        rate = wrong.sum(dim=0) / wrong.sum()
        # what is seen more often than it is anyway
        lift = beside / (beside.sum(dim=1, keepdim=True) + _PRIOR) - 0.5 * rate
        confused = lift.topk(min(_CONFUSIONS, len(rate)), dim=1).indices
        return cls(confidences.numpy(), found.clamp(0.02, 1).numpy(), (rate + 1e-6).numpy(), confused.numpy())

    def draw(self, named: Mapping[int, float], generator: np.random.Generator) -> list[tuple[int, float]]:
        """Tags (concept, confidence), surest first, for captions that name concepts.

        Args:
            named: concept to the share of the captions that name it.
            generator: source of randomness.
        """
        row = self.confidences[generator.integers(len(self.confidences))]
        row = row[row > 0]
        is_right = generator.random(len(row)) < row
        true = np.fromiter(named, dtype=np.int64)
        weight = np.fromiter(named.values(), dtype=np.float64) * self.found[true]
        wanted = min(int(is_right.sum()), len(true))
        # weighted draw without replacement: the largest of log(u) / w
        keys = np.log(generator.random(len(true))) / np.maximum(weight, 1e-6)
        right = iter(true[np.argsort(-keys)][:wanted].tolist())
        # wrong ones: half beside what is there, half of all
        taken = set(named)
        tags = []
        for confidence, hit in zip(row.tolist(), is_right.tolist(), strict=True):
            concept = next(right, None) if hit else self._mistake(true, taken, generator)
            if concept is None:
                continue
            taken.add(concept)
            tags.append((concept, confidence))
        return tags

    def _mistake(self, true: np.ndarray, taken: set[int], generator: np.random.Generator) -> int | None:
        for _ in range(4):
            if len(true) and generator.random() < 0.6:
                around = self.confused[true[generator.integers(len(true))]]
                # squared: the most frequent mistakes stand first
                concept = int(around[int(len(around) * generator.random() ** 2)])
            else:
                concept = int(np.searchsorted(self._cumulative, generator.random() * self._cumulative[-1]))
            if concept not in taken:
                return concept
        return None

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(self.mistaken)

    def save(self, folder: str | Path) -> None:
        """Write `concept_noise.safetensors` into `folder`."""
        tensors = {
            "confidences": torch.tensor(self.confidences).half(),
            "found": torch.tensor(self.found).float(),
            "mistaken": torch.tensor(self.mistaken).float(),
            "confused": torch.tensor(self.confused).to(torch.int16),
        }
        with replacing(Path(folder) / FILE_NAME) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, folder: str | Path) -> ConceptNoise:
        """Inverse of `save`.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        path = Path(folder) / FILE_NAME
        try:
            tensors = load_file(path)
            return cls(
                tensors["confidences"].float().numpy(),
                tensors["found"].numpy(),
                tensors["mistaken"].numpy(),
                tensors["confused"].long().numpy(),
            )
        except (OSError, SafetensorError, KeyError):
            raise CheckpointError(f"{path}: missing or damaged; train the tagger again") from None
