"""A data split that is decoded again and again: its features are computed once.

Shapes: I images, B captions, L caption positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddcap.captioner import Captioner
from ddcap.data.feature_cache import FeatureCache
from ddcap.data.records import CaptionedImage, load_karpathy
from ddcap.decoding.generate import generate, start_tokens
from ddcap.decoding.sampler import Drafts, Sampler
from ddcap.errors import RecipeError
from ddcap.model.encoders import build_image_encoder
from ddcap.model.features import ImageFeatures
from ddcap.recipe import Recipe
from ddcap.settings import DecodingSettings

IMAGES_AT_ONCE = 50


@dataclass(frozen=True)
class Split:
    """The images of one split with their cached features.

    Attributes:
        name: "val" or "test".
        records: its images and human captions.
        cache: their features, plain views, in the same order.
        device: where they are captioned.
    """

    name: str
    records: Sequence[CaptionedImage]
    cache: FeatureCache
    device: str = "cpu"

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """Image id to human captions."""
        return {record.image_id: record.captions for record in self.records}

    def features(self, captioner: Captioner, rows: Sequence[int]) -> ImageFeatures:
        """Encode some of the images with the captioner's model."""
        features = [self.cache.read(row, 0) for row in rows]
        memory, summary = (torch.stack([one[part] for one in features]).float() for part in (0, 1))
        model = captioner.model
        seen: ImageFeatures = model.encoder.with_concepts(ImageFeatures(memory, summary).to(model.device))
        return seen

    def batches(
        self, captioner: Captioner, at_once: int = IMAGES_AT_ONCE
    ) -> Iterator[tuple[Sequence[CaptionedImage], ImageFeatures]]:
        """Some images and what the captioner's model sees of them, at most `at_once`, in order."""
        for start in range(0, len(self.records), at_once):
            records = self.records[start : start + at_once]
            yield records, self.features(captioner, range(start, start + len(records)))


def load_split(recipe: Recipe, name: str, limit: int | None = None, device: str = "cpu") -> Split:
    """Read a split of a recipe's data; missing features are computed.

    Args:
        recipe: its data and encoder sections are read.
        name: "val" or "test".
        limit: only the first so many images.
        device: where features and captions are computed.

    Raises:
        DataError: if the data cannot be used.
        RecipeError: if the recipe has no feature cache.
    """
    data = recipe.data
    if data.cache is None:
        raise RecipeError("an ablation decodes one split many times; set data.cache (frozen encoder)")
    root = Path(data.root)
    records = load_karpathy(root / data.json, root / data.images, name)[:limit]
    encoder = build_image_encoder(recipe.encoder).to(device)
    paths = [record.path for record in records]
    return Split(name, records, FeatureCache(data.cache, encoder, paths, bf16=recipe.training.bf16), device)


@torch.no_grad()
def caption_split(
    captioner: Captioner,
    split: Split,
    settings: DecodingSettings,
    *,
    seed: int = 0,
    true_lengths: bool = False,
    at_once: int = IMAGES_AT_ONCE,
) -> dict[str, str]:
    """Image id to caption.

    Args:
        captioner: model and tokenizer; a frozen encoder's features come from the split.
        split: what to caption.
        settings: how to decode.
        seed: of decoders that draw.
        true_lengths: give every caption the length of the image's first human caption.
        at_once: images decoded together.
    """
    generator = np.random.default_rng(seed)
    captions: dict[str, str] = {}
    for records, features in split.batches(captioner, at_once):
        if true_lengths:
            lengths = _first_lengths(captioner, records)
            tokens = start_tokens(lengths, captioner.model.mask_id)
            end_id = captioner.tokenizer.end_id
            sampler = Sampler(captioner.model, features, settings, end_id, generator=generator)
            result = sampler.fill(Drafts(tokens, lengths))
        else:
            result = generate(
                captioner.model, features, settings, captioner.tokenizer.end_id, generator=generator
            )
        texts = [captioner.tokenizer.decode(ids) for ids in result.tokens.tolist()]
        captions.update(zip((record.image_id for record in records), texts, strict=True))
    return captions


def _first_lengths(captioner: Captioner, records: Sequence[CaptionedImage]) -> Tensor:
    """(I,) tokens of each image's first human caption, end token included, at most the model's longest."""
    encoded = captioner.tokenizer.encode_batch([record.captions[0] for record in records])
    longest = captioner.model.config.model.max_length
    return torch.tensor([min(len(ids), longest) for ids in encoded], device=captioner.model.device)
