"""Captioned pictures of one split to batches, in any order that is asked for.

Nothing here keeps a random state: which pictures, captions and views an epoch draws follows from its number.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddcap.data.batches import CaptionBatch, Draw, Part, collate, fit_length
from ddcap.data.concepts import ConceptTokens
from ddcap.data.feature_cache import FeatureCache, view_pixels
from ddcap.data.images import Preprocessing
from ddcap.data.karpathy import CaptionedImage
from ddcap.data.steps import StepData
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DataError, ImageError
from ddcap.recipe import DataSettings


class PixelSource:
    """Views computed from the picture files, with fresh random crops in every epoch."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    def read(self, index: int, view: int, seed: object = 0) -> Tensor:
        """Pixels (3, H, W)."""
        return view_pixels(self.paths[index], view, self.preprocessing, seed)

    def blank(self) -> Tensor:
        """Pixels (3, H, W) of no picture."""
        return torch.zeros(3, self.preprocessing.size, self.preprocessing.size)


class ConceptSource(Protocol):
    """Where the concepts of pictures come from, if not from the encoder."""

    def read(self, draws: Sequence[Draw]) -> ConceptTokens:
        """Of each draw's picture."""


class CaptionData(StepData):
    """Tokenized captions beside their pictures; item = a `Part`, as a `CaptionBatch`.

    Args:
        records: of one split.
        tokenizer: turns captions into ids.
        source: a feature cache (frozen encoder) or pixels, in the order of `records`; None for text alone.
        settings: the recipe's data section.
        max_length: longest caption in tokens.
        concepts: what the pictures show, where the encoder is not asked.

    Raises:
        DataError: if no caption is short enough.
    """

    def __init__(
        self,
        records: Sequence[CaptionedImage],
        tokenizer: CaptionTokenizer,
        source: FeatureCache | PixelSource | None,
        settings: DataSettings,
        max_length: int,
        concepts: ConceptSource | None = None,
    ) -> None:
        self.records = records
        self.concepts = concepts
        self.source = source
        self.settings = settings
        self.padding_id = tokenizer.padding_id
        flat = iter(tokenizer.encode_batch([caption for record in records for caption in record.captions]))
        self.captions = [[next(flat) for _ in record.captions] for record in records]
        if settings.long_captions == "drop":
            self.captions = [
                [ids for ids in captions if len(ids) <= max_length] for captions in self.captions
            ]
        fit = partial(
            fit_length,
            max_length=max_length,
            end_id=tokenizer.end_id,
            padding_id=tokenizer.padding_id,
            learn_padding=settings.learn_padding,
        )
        self.captions = [[fit(ids) for ids in captions] for captions in self.captions]
        if not any(self.captions):
            raise DataError(
                f"no caption has at most {max_length} tokens; "
                "raise model.max_length or set data.long_captions=truncate"
            )

    def draws(self, seed: int, epoch: int, views: int) -> list[Draw]:
        """Every caption of the split once, in a random order; the last group of an image is filled up."""
        generator = random.Random(f"{seed}/{epoch}")
        size = self.settings.captions_per_image
        draws = []
        for record, captions in enumerate(self.captions):
            order = generator.sample(range(len(captions)), len(captions))
            for start in range(0, len(order), size):
                group = order[start : start + size]
                group += generator.choices(order, k=size - len(group))
                draws.append(Draw(record, tuple(group), generator.randrange(views), epoch))
        generator.shuffle(draws)
        return draws

    def __getitem__(self, part: Part) -> CaptionBatch:
        """Read and pad one part, without the pictures that cannot be read; a blank one if none can."""
        pictures, places, unreadable = self._read(part)
        is_blank = not places
        if is_blank:
            assert self.source is not None  # captions alone can always be read
            pictures, places = {name: [self.source.blank()] for name in pictures}, [0]
        draws = [part[place] for place in places]
        return collate(
            [self.captions[draw.record][caption] for draw in draws for caption in draw.captions],
            [self.records[draw.record].image_id for draw in draws],
            padding_id=self.padding_id,
            places=places,
            unreadable=unreadable,
            concepts=self.concepts.read(draws) if self.concepts is not None else None,
            is_blank=is_blank,
            **pictures,
        )

    def _read(self, part: Part) -> tuple[dict[str, Any], list[int], list[str]]:
        """What the source has of the pictures, for `collate`; their places, and why others are missing."""
        if self.source is None:
            return {}, list(range(len(part))), []
        name = "features" if isinstance(self.source, FeatureCache) else "pixels"
        pictures: list[Any] = []
        found, unreadable = [], []
        for place, draw in enumerate(part):
            try:
                pictures.append(self.source.read(draw.record, draw.view, draw.epoch))
                found.append(place)
            except ImageError as error:
                unreadable.append(str(error))
        return {name: pictures}, found, unreadable
