"""Captioned pictures to training batches, as a pure function of (seed, epoch, step).

Nothing here keeps a random state: which pictures, captions and views a step sees follows from its number, so
a resumed run reads exactly what an uninterrupted one would have read, with any number of loader processes.

Shapes: I images, n captions per image, B = I n captions (grouped by image), L caption positions.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddcap.data.feature_cache import FeatureCache, view_pixels
from ddcap.data.images import Preprocessing
from ddcap.data.karpathy import CaptionedImage
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DataError, ImageError
from ddcap.recipe import DataSettings


@dataclass(frozen=True)
class CaptionBatch:
    """One part of a training step.

    Attributes:
        pixels: (I, 3, H, W), or None when cached features, or captions without pictures, are given.
        memory: (I, P, C) cached features, or None.
        summary: (I, S) cached features, or None.
        tokens: (B, L) x_0, end token included, padded.
        lengths: (B,).
        positions: (N,) flat indices of the real positions in B x L.
        real_positions: N summed over all parts and processes of the step, for the mean loss.
        image_ids: of the I images.
        unreadable: why pictures of the part are missing from it, a line each.
    """

    pixels: Tensor | None
    memory: Tensor | None
    summary: Tensor | None
    tokens: Tensor
    lengths: Tensor
    positions: Tensor
    real_positions: int
    image_ids: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    def to(self, device: torch.device) -> CaptionBatch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class Draw:
    """One picture of a batch: which record, which of its captions, which view in which epoch."""

    record: int
    captions: tuple[int, ...]
    view: int
    epoch: int


@dataclass(frozen=True)
class Part:
    """The pictures one process computes at once, and the size of the whole step they belong to."""

    draws: tuple[Draw, ...]
    real_positions: int


class PixelSource:
    """Views computed from the picture files, with fresh random crops in every epoch."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    def read(self, index: int, view: int, seed: object = 0) -> Tensor:
        """Pixels (3, H, W)."""
        return view_pixels(self.paths[index], view, self.preprocessing, seed)


class CaptionData(Dataset[CaptionBatch]):
    """Tokenized captions beside their pictures; item = a `Part`, as a `CaptionBatch`.

    Args:
        records: of one split.
        tokenizer: turns captions into ids.
        source: a feature cache (frozen encoder) or pixels, in the order of `records`; None for text alone.
        settings: the recipe's data section.
        max_length: longest caption in tokens.
        weights: how often each caption of each record is to be drawn, relative to the record's others; None
            draws every caption once an epoch.

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
        weights: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.records = records
        self.source = source
        self.settings = settings
        self.padding_id = tokenizer.padding_id
        flat = iter(tokenizer.encode_batch([caption for record in records for caption in record.captions]))
        self.captions = [[next(flat) for _ in record.captions] for record in records]
        self.weights = weights
        if settings.long_captions == "drop":
            if weights is not None:
                self.weights = [
                    [weight for weight, ids in zip(*both, strict=True) if len(ids) <= max_length]
                    for both in zip(weights, self.captions, strict=True)
                ]
            self.captions = [
                [ids for ids in captions if len(ids) <= max_length] for captions in self.captions
            ]
        else:
            end = [tokenizer.end_id]
            self.captions = [
                [ids if len(ids) <= max_length else ids[: max_length - 1] + end for ids in captions]
                for captions in self.captions
            ]
        if settings.learn_padding:
            self.captions = [
                [ids + [tokenizer.padding_id] * (max_length - len(ids)) for ids in captions]
                for captions in self.captions
            ]
        if not any(self.captions):
            raise DataError(
                f"no caption has at most {max_length} tokens; "
                "raise model.max_length or set data.long_captions=truncate"
            )

    def draws(self, seed: int, epoch: int, views: int) -> list[Draw]:
        """Every caption of the split once, in a random order; the last group of an image is filled up.

        With weights as many groups, of captions drawn by them.
        """
        generator = random.Random(f"{seed}/{epoch}")
        size = self.settings.captions_per_image
        draws = []
        for record, captions in enumerate(self.captions):
            order = generator.sample(range(len(captions)), len(captions))
            for start in range(0, len(order), size):
                group = order[start : start + size]
                group += generator.choices(order, k=size - len(group))
                if self.weights is not None:
                    group = generator.choices(range(len(captions)), self.weights[record], k=size)
                draws.append(Draw(record, tuple(group), generator.randrange(views), epoch))
        generator.shuffle(draws)
        return draws

    def __getitem__(self, part: Part) -> CaptionBatch:
        """Read and pad one part, without the pictures that cannot be read.

        Raises:
            DataError: if not one of them can.
        """
        pictures, draws, unreadable = self._read(part.draws)
        rows = [self.captions[draw.record][caption] for draw in draws for caption in draw.captions]
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        tokens = torch.tensor([row + [self.padding_id] * (longest - len(row)) for row in rows])
        real = torch.arange(longest) < lengths.unsqueeze(1)  # (B, L)
        pixels = memory = summary = None
        if isinstance(self.source, FeatureCache):
            memory = torch.stack([picture[0] for picture in pictures]).float()
            summary = torch.stack([picture[1] for picture in pictures]).float()
        elif self.source is not None:
            pixels = torch.stack([picture[0] for picture in pictures])
        return CaptionBatch(
            pixels=pixels,
            memory=memory,
            summary=summary,
            tokens=tokens,
            lengths=lengths,
            positions=real.flatten().nonzero().squeeze(1),
            real_positions=part.real_positions,
            image_ids=tuple(self.records[draw.record].image_id for draw in draws),
            unreadable=unreadable,
        )

    def _read(self, draws: Sequence[Draw]) -> tuple[list[tuple[Tensor, ...]], list[Draw], tuple[str, ...]]:
        """What the source has of each picture, the draws it belongs to, and why others are missing."""
        if self.source is None:
            return [], list(draws), ()
        pictures: list[tuple[Tensor, ...]] = []
        found, unreadable = [], []
        for draw in draws:
            try:
                if isinstance(self.source, FeatureCache):
                    pictures.append(self.source.read(draw.record, draw.view))
                else:
                    pictures.append((self.source.read(draw.record, draw.view, draw.epoch),))
                found.append(draw)
            except ImageError as error:
                unreadable.append(str(error))
        if not found:
            raise DataError(
                f"{unreadable[0]}; and no other picture of this batch can be read; check data.root"
            )
        return pictures, found, tuple(unreadable)


@dataclass(frozen=True)
class StepPlan:
    """How an optimiser step's captions are shared among processes and accumulation parts."""

    seed: int
    images_per_step: int
    processes: int = 1
    process: int = 0
    accumulation: int = 1

    def steps_per_epoch(self, data: CaptionData) -> int:
        """Whole optimiser steps in an epoch.

        Raises:
            DataError: if the data do not fill one step.
        """
        draws = len(data.draws(self.seed, 0, 1))
        if draws < self.images_per_step:
            size = data.settings.captions_per_image
            raise DataError(
                f"the training split fills {draws * size} captions, less than one step of "
                f"{self.images_per_step * size}; lower training.batch_size"
            )
        return draws // self.images_per_step

    def parts(self, data: CaptionData, epoch: int, first_step: int = 0) -> list[Part]:
        """This process's parts of every step of an epoch, from `first_step` on, in order."""
        draws = data.draws(self.seed, epoch, data.settings.views)
        size = self.images_per_step // (self.processes * self.accumulation)
        parts: list[Part] = []
        for step in range(first_step, self.steps_per_epoch(data)):
            whole = draws[step * self.images_per_step : (step + 1) * self.images_per_step]
            positions = sum(len(data.captions[draw.record][c]) for draw in whole for c in draw.captions)
            mine = whole[self.process * size * self.accumulation :][: size * self.accumulation]
            parts.extend(
                Part(tuple(mine[start : start + size]), positions) for start in range(0, len(mine), size)
            )
        return parts


def training_steps(
    data: CaptionData, plan: StepPlan, first_step: int, last_step: int
) -> Iterator[list[CaptionBatch]]:
    """The parts of the optimiser steps `first_step` to `last_step` - 1, counted over the whole training."""
    per_epoch = plan.steps_per_epoch(data)
    step = first_step
    while step < last_step:
        epoch, within = divmod(step, per_epoch)
        parts = plan.parts(data, epoch, within)[: (last_step - step) * plan.accumulation]
        loader: DataLoader[CaptionBatch] = DataLoader(
            data,
            sampler=parts,
            batch_size=None,
            num_workers=data.settings.workers,
            prefetch_factor=4 if data.settings.workers else None,
        )
        batches = iter(loader)
        for _ in range(len(parts) // plan.accumulation):
            yield [next(batches) for _ in range(plan.accumulation)]
            step += 1
