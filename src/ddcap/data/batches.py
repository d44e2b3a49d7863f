"""Captioned images to the batches of optimiser steps, as a pure function of (seed, epoch, step).

Nothing here keeps a random state, so a resumed run reads exactly what an uninterrupted one would have read,
with any number of loader processes.

Shapes: I images, n captions per image, B = I n captions (grouped by image), L caption positions.
"""

from __future__ import annotations

import dataclasses
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddcap.data.concepts import ConceptTokens
from ddcap.data.feature_cache import FeatureCache, view_pixels
from ddcap.data.images import Preprocessing
from ddcap.data.records import CaptionedImage, fold_of
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DataError, ImageError
from ddcap.recipe import DataSettings

# What a training step reads, and what it is drawn as.


@dataclass(frozen=True)
class CaptionBatch:
    """One part of a training step.

    Attributes:
        pixels: (I, 3, H, W), or None when cached features, or captions without images, are given.
        memory: (I, P, C) cached features, float16 as they were stored, or None.
        summary: (I, S) likewise.
        tokens: (B, L) x_0, end token included, padded.
        lengths: (B,).
        positions: (N,) flat indices of the real positions in B x L.
        image_ids: of the I images.
        places: of the I images, each one's place in the part as it was drawn.
        unreadable: why images of the part are missing from it, a line each.
        concepts: of the I images; None where the encoder finds them, or there are none.
        is_blank: whether not one of the part's images could be read: then it holds one made up, which is
            computed, since other processes wait for that, and counts for nothing.
    """

    pixels: Tensor | None
    memory: Tensor | None
    summary: Tensor | None
    tokens: Tensor
    lengths: Tensor
    positions: Tensor
    image_ids: tuple[str, ...]
    places: tuple[int, ...]
    unreadable: tuple[str, ...] = ()
    concepts: ConceptTokens | None = None
    is_blank: bool = False

    @property
    def words(self) -> int:
        """Real positions that count."""
        return 0 if self.is_blank else len(self.positions)

    @property
    def images(self) -> int:
        """Images that count; with captions alone, what stands for them."""
        return 0 if self.is_blank else len(self.image_ids)

    def to(self, device: torch.device) -> CaptionBatch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor | ConceptTokens) else value
            for name, value in vars(self).items()
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class Draw:
    """One image of a batch: which record, which of its captions, which view in which epoch."""

    record: int
    captions: tuple[int, ...]
    view: int
    epoch: int


Part = tuple[Draw, ...]
"""The images one process computes at once; every image has as many captions."""


def fit_length(
    ids: list[int], max_length: int, *, end_id: int, padding_id: int, learn_padding: bool
) -> list[int]:
    """At most `max_length` ids, the last of them the end token; filled up to so many to learn the padding."""
    if len(ids) > max_length:
        ids = [*ids[: max_length - 1], end_id]
    return ids + [padding_id] * (max_length - len(ids)) if learn_padding else ids


def collate(
    rows: Sequence[Sequence[int]],
    image_ids: Sequence[str],
    *,
    padding_id: int,
    pixels: Sequence[Tensor] | None = None,
    features: Sequence[tuple[Tensor, Tensor]] | None = None,
    places: Sequence[int] | None = None,
    unreadable: Sequence[str] = (),
    concepts: ConceptTokens | None = None,
    is_blank: bool = False,
) -> CaptionBatch:
    """One batch of captions (B token rows, grouped by image) and I images: pixels, features, or neither.

    `places` are needed where images are missing from the part.
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = max(map(len, rows), default=0)  # draws of images alone have no captions
    padded = [[*row, *[padding_id] * (longest - len(row))] for row in rows]
    tokens = torch.tensor(padded, dtype=torch.long).view(len(rows), longest)
    real = torch.arange(longest) < lengths.unsqueeze(1)  # (B, L)
    memory, summary = zip(*features, strict=True) if features is not None else (None, None)
    return CaptionBatch(
        pixels=torch.stack(list(pixels)) if pixels is not None else None,
        memory=torch.stack(memory) if memory is not None else None,
        summary=torch.stack(summary) if summary is not None else None,
        tokens=tokens,
        lengths=lengths,
        positions=real.flatten().nonzero().squeeze(1),
        image_ids=tuple(image_ids),
        places=tuple(places if places is not None else range(len(image_ids))),
        unreadable=tuple(unreadable),
        concepts=concepts,
        is_blank=is_blank,
    )


# Training data to optimiser steps, as a pure function of (seed, epoch, step). A resumed run reads exactly
# what an uninterrupted one would have read, with any number of loader processes.


class StepData(Dataset[CaptionBatch]):
    """A data set whose items are the batches of steps."""

    settings: DataSettings

    def draws(self, seed: int, epoch: int, views: int) -> Sequence[Draw]:
        """All images of an epoch in their order, with captions and views."""
        raise NotImplementedError

    def __getitem__(self, part: Part) -> CaptionBatch:
        """Read one part."""
        raise NotImplementedError


@dataclass(frozen=True)
class StepPlan:
    """The shares of an optimiser step's captions, by process and accumulation part."""

    seed: int
    images_per_step: int
    processes: int = 1
    process: int = 0
    accumulation: int = 1

    def steps_per_epoch(self, data: StepData) -> float:
        """Optimiser steps in an epoch. The last may be shared with the next epoch, which its images end.

        Raises:
            DataError: if the data do not fill one step.
        """
        draws = len(data.draws(self.seed, 0, 1))
        if draws < self.images_per_step:
            size = data.settings.captions_per_image
            raise DataError(
                f"the training split has {draws * size} captions, fewer than one step of "
                f"{self.images_per_step * size}; lower training.batch_size"
            )
        return draws / self.images_per_step

    @property
    def images_per_part(self) -> int:
        """Images that one process computes at once."""
        return self.images_per_step // (self.processes * self.accumulation)

    def first_image(self, part: int) -> int:
        """Return the first image of this process's part of a step."""
        return (self.process * self.accumulation + part) * self.images_per_part

    def parts(self, data: StepData, first_step: int, last_step: int) -> _Parts:
        """This process's parts of the steps `first_step` to `last_step` - 1 of a training, in order."""
        return _Parts(self, data, first_step, last_step)


class _Parts(Sequence[Part]):
    """Parts cut out of the draws of epoch after epoch when they are asked for: an epoch can have millions.

    Epochs follow each other without a gap, so that none ends with images that do not fill a step.
    """

    def __init__(self, plan: StepPlan, data: StepData, first_step: int, last_step: int) -> None:
        self._plan, self._first = plan, first_step * plan.accumulation
        self._count = (last_step - first_step) * plan.accumulation
        self._per_epoch = len(data.draws(plan.seed, 0, 1))  # every epoch has as many
        # a step lies in one epoch or in two
        self._epoch = lru_cache(maxsize=2)(lambda epoch: data.draws(plan.seed, epoch, data.settings.views))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        plan = self._plan
        step, part = divmod(number % len(self) + self._first, plan.accumulation)
        start = step * plan.images_per_step + plan.first_image(part)
        return tuple(self._draw(number) for number in range(start, start + plan.images_per_part))

    def _draw(self, number: int) -> Draw:
        epoch, place = divmod(number, self._per_epoch)
        return self._epoch(epoch)[place]


def steps_beside(
    steps: Iterator[list[CaptionBatch]], beside: Iterator[list[CaptionBatch]]
) -> Iterator[list[CaptionBatch]]:
    """Steps whose parts are those of two data sets, each counted in its own epochs."""
    for ours, theirs in zip(steps, beside, strict=True):
        yield [*ours, *theirs]


def training_steps(
    data: StepData, plan: StepPlan, first_step: int, last_step: int
) -> Iterator[list[CaptionBatch]]:
    """The parts of the optimiser steps `first_step` to `last_step` - 1, counted over the whole training."""
    loader: DataLoader[CaptionBatch] = DataLoader(
        data,
        sampler=plan.parts(data, first_step, last_step),
        batch_size=None,
        num_workers=data.settings.workers,
        prefetch_factor=4 if data.settings.workers else None,
        worker_init_fn=_leave_signals_to_the_training,
    )
    batches = iter(loader)
    for _ in range(first_step, last_step):
        yield [next(batches) for _ in range(plan.accumulation)]


def _leave_signals_to_the_training(_: int) -> None:
    """A scheduler signals all processes of a job; the step that is under way still needs its loader."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# Captioned images of one split to batches, in any order that is asked for. Nothing here keeps a random
# state: which images, captions and views an epoch draws follows from its number.


class PixelSource:
    """Views computed from the image files, with fresh random crops in every epoch."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    def read(self, index: int, view: int, seed: object = 0) -> Tensor:
        """Pixels (3, H, W)."""
        return view_pixels(self.paths[index], view, self.preprocessing, seed)

    def blank(self) -> Tensor:
        """Pixels (3, H, W) of no image."""
        return torch.zeros(3, self.preprocessing.size, self.preprocessing.size)


class ConceptSource(Protocol):
    """A source of the concepts of images, in place of the encoder."""

    def read(self, draws: Sequence[Draw]) -> ConceptTokens:
        """Of each draw's image."""


class CaptionData(StepData):
    """Tokenized captions beside their images; item = a `Part`, as a `CaptionBatch`.

    Args:
        records: of one split.
        tokenizer: turns captions into ids.
        source: a feature cache (frozen encoder) or pixels, in the order of `records`; None for text alone.
        settings: the recipe's data section.
        max_length: longest caption in tokens.
        concepts: what the images show, where the encoder is not asked.
        distilled: captions that a teacher wrote for each record, of which `settings.distilled_share` of all
            captions are drawn (sequence-level distillation, Kim and Rush 2016); None: none.

    With `settings.held_out` the records of that fold are never drawn. Their features stay in one cache with
    the others', so that all folds share it.

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
        distilled: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.records = records
        self.concepts = concepts
        self.source = source
        self.settings = settings
        self.padding_id = tokenizer.padding_id
        written: Sequence[Sequence[str]] = [record.captions for record in records]
        self.captions = self._encoded(written, tokenizer, max_length)
        self.distilled = None if distilled is None else self._encoded(distilled, tokenizer, max_length)
        if settings.held_out is not None:
            for number, record in enumerate(records):
                if fold_of(record, settings.folds) == settings.held_out:
                    self.captions[number] = []
                    if self.distilled is not None:
                        self.distilled[number] = []
        if not any(self.captions) and not any(self.distilled or ()):
            raise DataError(
                f"no caption has at most {max_length} tokens; "
                "raise model.max_length or set data.long_captions=truncate"
            )

    def _encoded(
        self, texts: Sequence[Sequence[str]], tokenizer: CaptionTokenizer, max_length: int
    ) -> list[list[list[int]]]:
        """Token ids of each record's captions, those that are too long dropped or cut."""
        flat = iter(tokenizer.encode_batch([caption for captions in texts for caption in captions]))
        encoded = [[next(flat) for _ in captions] for captions in texts]
        if self.settings.long_captions == "drop":
            encoded = [[ids for ids in captions if len(ids) <= max_length] for captions in encoded]
        fit = partial(
            fit_length,
            max_length=max_length,
            end_id=tokenizer.end_id,
            padding_id=tokenizer.padding_id,
            learn_padding=self.settings.learn_padding,
        )
        return [[fit(ids) for ids in captions] for captions in encoded]

    def draws(self, seed: int, epoch: int, views: int) -> list[Draw]:
        """Every caption of the split once, in a random order; the last group of an image is filled up.

        Where a teacher's captions are mixed in, each takes the place of one of people's with a probability of
        `distilled_share`: an epoch has as many captions with them as without, and draws the same views. A
        draw's number of a caption counts people's first, then the teacher's.
        """
        generator = random.Random(f"{seed}/{epoch}")
        mixing = random.Random(f"{seed}/{epoch}/distilled")
        size = self.settings.captions_per_image
        draws = []
        for record, captions in enumerate(self.captions):
            taught = self.distilled[record] if self.distilled is not None else []
            own = range(len(captions) or len(taught))
            order = generator.sample(own, len(own))
            for start in range(0, len(order), size):
                group = order[start : start + size]
                group += generator.choices(order, k=size - len(group))
                if taught:
                    share = self.settings.distilled_share if captions else 1.0
                    group = [
                        len(captions) + mixing.randrange(len(taught)) if mixing.random() < share else one
                        for one in group
                    ]
                draws.append(Draw(record, tuple(group), generator.randrange(views), epoch))
        generator.shuffle(draws)
        return draws

    def _caption(self, record: int, number: int) -> list[int]:
        """Token ids of a caption that a draw counts."""
        own = self.captions[record]
        if number < len(own):
            return own[number]
        assert self.distilled is not None
        return self.distilled[record][number - len(own)]

    def __getitem__(self, part: Part) -> CaptionBatch:
        """Read and pad one part, without the images that cannot be read; a blank one if none can."""
        images, places, unreadable = self._read(part)
        is_blank = not places
        if is_blank:
            assert self.source is not None  # captions alone can always be read
            images, places = {name: [self.source.blank()] for name in images}, [0]
        draws = [part[place] for place in places]
        return collate(
            [self._caption(draw.record, caption) for draw in draws for caption in draw.captions],
            [self.records[draw.record].image_id for draw in draws],
            padding_id=self.padding_id,
            places=places,
            unreadable=unreadable,
            concepts=self.concepts.read(draws) if self.concepts is not None else None,
            is_blank=is_blank,
            **images,
        )

    def _read(self, part: Part) -> tuple[dict[str, Any], list[int], list[str]]:
        """Read from the source, for `collate`: the images, their places, and why others are missing."""
        if self.source is None:
            return {}, list(range(len(part))), []
        name = "features" if isinstance(self.source, FeatureCache) else "pixels"
        images: list[Any] = []
        found, unreadable = [], []
        for place, draw in enumerate(part):
            try:
                images.append(self.source.read(draw.record, draw.view, draw.epoch))
                found.append(place)
            except ImageError as error:
                unreadable.append(str(error))
        return {name: images}, found, unreadable
