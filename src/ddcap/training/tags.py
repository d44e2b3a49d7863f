"""Concepts for training: stored tags of pictures, and tags drawn for captions without pictures.

Shapes: I pictures, K concepts of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ddcap.data.batches import Draw
from ddcap.data.concepts import ConceptTokens, ConceptVocabulary, stack_concepts
from ddcap.data.karpathy import CaptionedImage
from ddcap.errors import CheckpointError, DataError
from ddcap.model.image_encoder import ImageEncoder, build_image_encoder
from ddcap.recipe import EncoderSettings
from ddcap.training.concept_noise import ConceptNoise

ENCODER_NAME = "encoder.safetensors"
TAGS_NAME = "tags.safetensors"


@dataclass(frozen=True)
class Tagging:
    """What `ddcap tagger` made.

    Attributes:
        vocabulary: the concepts' words.
        weights: of the tagger, by their names in the encoder.
        noise: how tags are wrong.
        tags_path: tags of the training pictures.
    """

    vocabulary: ConceptVocabulary
    weights: Mapping[str, Tensor]
    noise: ConceptNoise
    tags_path: Path

    def encoder(self, settings: EncoderSettings) -> ImageEncoder:
        """An encoder with these weights, frozen or trained as `settings` say."""
        encoder = build_image_encoder(settings, concepts=len(self.vocabulary))
        encoder.load_state_dict(dict(self.weights), strict=False)
        return encoder


def load_tagging(folder: str | Path) -> Tagging:
    """Read the folder.

    Raises:
        CheckpointError: if a file is missing or damaged, or they are not of one tagger.
    """
    folder = Path(folder)
    path = folder / ENCODER_NAME
    try:
        weights = load_file(path)
    except (OSError, SafetensorError):
        raise CheckpointError(
            f"encoder.tagger={folder}: {ENCODER_NAME} is missing or damaged; run ddcap tagger first"
        ) from None
    floats = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    vocabulary, seen = ConceptVocabulary.load(folder), len(floats["tagger.output.bias"])
    if len(vocabulary) != seen:
        raise CheckpointError(
            f"encoder.tagger={folder}: concepts.json has {len(vocabulary)} words, the tagger {seen} "
            "concepts; run ddcap tagger again"
        )
    return Tagging(vocabulary, floats, ConceptNoise.load(folder), folder / TAGS_NAME)


class StoredTags:
    """Tags of training pictures, by taggers that had not seen them.

    Args:
        path: of `tags.safetensors`.
        records: the pictures, in the order in which draws count them.

    Raises:
        DataError: if a picture has no tags.
        CheckpointError: if the file is missing or damaged.
    """

    def __init__(self, path: Path, records: Sequence[CaptionedImage]) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                images = json.loads(file.metadata()["images"])
                self._ids, self._confidences = file.get_tensor("ids"), file.get_tensor("confidences")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            raise CheckpointError(f"{path}: missing or damaged; run ddcap tagger again") from None
        row = {image: number for number, image in enumerate(images)}
        missing = next((record.image_id for record in records if record.image_id not in row), None)
        if missing is not None:
            raise DataError(f"{path}: has no tags of picture {missing}; run ddcap tagger on the same data")
        self._rows = [row[record.image_id] for record in records]

    def read(self, draws: Sequence[Draw]) -> ConceptTokens:
        """Of each draw's picture and view; a view that was not tagged has the plain one's."""
        rows = torch.tensor([self._rows[draw.record] for draw in draws])
        views = torch.tensor([draw.view if draw.view < self._ids.shape[1] else 0 for draw in draws])
        return ConceptTokens(self._ids[rows, views].long(), self._confidences[rows, views].float())


class DrawnTags:
    """Tags for captions without pictures; the same for the same draw.

    Args:
        noise: how tags are wrong.
        vocabulary: finds the concepts that captions name.
        records: captions of a picture each.
        count: K.
    """

    def __init__(
        self,
        noise: ConceptNoise,
        vocabulary: ConceptVocabulary,
        records: Sequence[CaptionedImage],
        count: int,
    ) -> None:
        self._noise, self._count = noise, count
        self._named = [vocabulary.shares(record.captions) for record in records]

    def read(self, draws: Sequence[Draw]) -> ConceptTokens:
        """Of each draw."""
        rows = []
        for draw in draws:
            generator = np.random.default_rng([draw.epoch, draw.record, *draw.captions])
            rows.append(self._noise.draw(self._named[draw.record], generator))
        return stack_concepts(rows, self._count)
