"""Concepts for training: stored tags of images, and tags drawn for captions without images.

Shapes: I or R images, N concepts, K tags of an image, C confusions kept of each concept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddcap.data.batches import Draw
from ddcap.data.concepts import NO_CONCEPT, ConceptTokens, ConceptVocabulary, stack_concepts
from ddcap.data.feature_cache import FeatureCache, view_pixels
from ddcap.data.images import Preprocessing
from ddcap.data.records import CaptionedImage
from ddcap.errors import CheckpointError, DataError, ImageError
from ddcap.files import replacing
from ddcap.model.concepts import strongest
from ddcap.model.detector import Detector
from ddcap.model.encoders import ImageEncoder, build_image_encoder
from ddcap.settings import EncoderSettings

# Tags for captions without images: wrong as often, and in the same way, as those of images are. A
# tagger's list is a row of confidences, and a confidence says how often such a tag is right. So a list for a
# caption takes the confidences of a real image's list; each becomes a concept that the captions name with
# that probability, and else one of those that are seen by mistake beside what is there.

FILE_NAME = "concept_noise.safetensors"

_CONFUSIONS = 12
_PRIOR = 5.0  # images that a concept's rates are mixed with, those of all concepts


@dataclass(frozen=True)
class ConceptNoise:
    """Statistics of the tags of images.

    Attributes:
        confidences: (R, K) of the images' tags, highest first, 0 where there are fewer.
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
        """Of images whose captions are known.

        Args:
            probabilities: (R, N) by taggers that have not seen the images.
            named: (R, N) share of each image's captions that name a concept.
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


ENCODER_NAME = "encoder.safetensors"
TAGS_NAME = "tags.safetensors"


@dataclass(frozen=True)
class Tagging:
    """The files that `ddcap tagger` made.

    Attributes:
        vocabulary: the concepts' words.
        weights: of the tagger, by their names in the encoder.
        noise: how tags are wrong.
        tags_path: tags of the training images.
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
    """Tags of training images, by taggers that had not seen them.

    Args:
        path: of `tags.safetensors`.
        records: the images, in the order in which draws count them.

    Raises:
        DataError: if an image has no tags.
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
            raise DataError(f"{path}: has no tags for image {missing}; run ddcap tagger on the same data")
        self._rows = [row[record.image_id] for record in records]

    def read(self, draws: Sequence[Draw]) -> ConceptTokens:
        """Of each draw's image and view; a view that was not tagged has the plain one's."""
        rows = torch.tensor([self._rows[draw.record] for draw in draws])
        views = torch.tensor([draw.view if draw.view < self._ids.shape[1] else 0 for draw in draws])
        return ConceptTokens(self._ids[rows, views].long(), self._confidences[rows, views].float())


class DetectedTags:
    """Tags of training images as a finished model's detector tells them, found when first asked for.

    Args:
        detector: that tells concepts.
        cache: of the images' features, in the order in which draws count them.
        paths: of the images, likewise.
        preprocessing: of the model's encoder.
        count: K.
    """

    def __init__(
        self,
        detector: Detector,
        cache: FeatureCache,
        paths: Sequence[Path],
        preprocessing: Preprocessing,
        count: int,
    ) -> None:
        self._detector, self._cache = detector, cache
        self._paths, self._preprocessing, self._count = paths, preprocessing, count
        self._found: dict[tuple[int, int], ConceptTokens] = {}

    def read(self, draws: Sequence[Draw]) -> ConceptTokens:
        """Of each draw's image and view; none of an image that cannot be read."""
        rows = [self._of(draw.record, draw.view) for draw in draws]
        return ConceptTokens(
            torch.stack([row.ids for row in rows]), torch.stack([row.confidences for row in rows])
        )

    def _of(self, record: int, view: int) -> ConceptTokens:
        if (record, view) not in self._found:
            try:
                _, summary = self._cache.read(record, view)
                pixels = view_pixels(self._paths[record], view, self._preprocessing)
            except ImageError:
                return ConceptTokens(torch.full((self._count,), NO_CONCEPT), torch.zeros(self._count))
            _, told = self._detector(pixels[None].numpy(), summary[None].float().numpy())
            assert told is not None  # of a detector that tells them
            self._found[record, view] = ConceptTokens(
                torch.from_numpy(told.ids[0]), torch.from_numpy(told.confidences[0])
            )
        return self._found[record, view]


class DrawnTags:
    """Tags for captions without images; the same for the same draw.

    Args:
        noise: how tags are wrong.
        vocabulary: finds the concepts that captions name.
        records: captions of an image each.
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
        concepts = stack_concepts(rows, self._count)
        return ConceptTokens(torch.from_numpy(concepts.ids), torch.from_numpy(concepts.confidences))
