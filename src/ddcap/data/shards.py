"""Webdataset shards to batches: for data that neither fit a folder nor a list in memory."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddcap.data.batches import CaptionBatch, Draw, Part, StepData, collate, fit_length
from ddcap.data.feature_cache import image_view
from ddcap.data.images import EncodedImage, Preprocessing, load_image
from ddcap.data.shard_files import (
    Sample,
    SampleNumbers,
    Shard,
    ShardCache,
    ShardFile,
    local_path,
    read_manifest,
)
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DataError, ImageError
from ddcap.recipe import DataSettings

# In which order an epoch goes through shards: a pure function of (seed, epoch), without opening one. The
# shards of an epoch are shuffled and taken some at a time; the images of those are shuffled together. So
# every process and loader knows the whole order, reads few shards at once, and none reads what another does.

_Ints = NDArray[np.int64]


class ShardOrder(Sequence[Draw]):
    """The draws of one epoch.

    A draw's record is the number of its sample, counted through all shards.

    Args:
        shards: of all sources.
        weights: of each shard: how often its draws come; a fraction takes so many of them, others each epoch.
        seed: of the training.
        epoch: its number.
        captions_per_image: captions of each draw; a sample with more has several draws.
        views: to choose a view from.
        mixed: shards whose images are shuffled together.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        weights: Sequence[float],
        *,
        seed: int,
        epoch: int,
        captions_per_image: int,
        views: int,
        mixed: int,
    ) -> None:
        self._shards, self._seed, self._epoch = shards, seed, epoch
        self._per_image, self._views = captions_per_image, views
        self._numbers = SampleNumbers(shards)
        # a turn is (shard, which time, how many of its draws)
        turns: list[tuple[int, int, int]] = []
        for number, (shard, weight) in enumerate(zip(shards, weights, strict=True)):
            draws = int(self._draws_per_sample(shard.captions).sum())
            turns += [(number, time, draws) for time in range(int(weight))]
            part = round((weight - int(weight)) * draws)
            if part:
                turns.append((number, int(weight), part))
        random.Random(f"{seed}/{epoch}/shards").shuffle(turns)
        self._groups = [turns[start : start + mixed] for start in range(0, len(turns), mixed)]
        self._ends = np.cumsum([sum(turn[2] for turn in group) for group in self._groups])
        self._group = lru_cache(maxsize=2)(self._build_group)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        group = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        record, time, chunk = (int(value) for value in self._group(group)[number - start])
        return self._draw(record, time, chunk)

    def _draws_per_sample(self, captions: _Ints) -> _Ints:
        return -(-captions // self._per_image)

    def _build_group(self, group: int) -> _Ints:
        """(draws, 3): sample, which time the sample comes, which of its groups of captions."""
        rows = []
        for shard, time, count in self._groups[group]:
            chunks = self._draws_per_sample(self._shards[shard].captions)
            samples = np.repeat(np.arange(len(chunks)), chunks)
            chunk = np.arange(len(samples)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
            order = self._generator("shard", shard, time).permutation(len(samples))[:count]
            table = np.stack(
                [samples + self._numbers.starts[shard], np.full_like(samples, time), chunk], axis=1
            )
            rows.append(table[order])
        together = np.concatenate(rows)
        return together[self._generator("group", group).permutation(len(together))]

    def _generator(self, *what: object) -> np.random.Generator:
        # seeded by text through the standard library: NumPy's own seeds are numbers only
        return np.random.default_rng(random.Random(f"{self._seed}/{self._epoch}/{what}").getrandbits(64))

    def _draw(self, record: int, time: int, chunk: int) -> Draw:
        """All captions of a sample once in its draws of one time; the last group is filled up."""
        shard, sample = self._numbers.locate(record)
        count = int(self._shards[shard].captions[sample])
        key = f"{self._seed}/{self._epoch}/{time}/{record}"
        order = random.Random(key).sample(range(count), count)
        mine = random.Random(f"{key}/{chunk}")
        captions = order[chunk * self._per_image : (chunk + 1) * self._per_image]
        captions += mine.choices(order, k=self._per_image - len(captions))
        return Draw(record, tuple(captions), mine.randrange(self._views), self._epoch)


# Images of webdataset shards to batches: for data that neither fit a folder nor a list in memory.


class ShardData(StepData):
    """Captioned images of several weighted sources; item = a part, as a `CaptionBatch`.

    Args:
        settings: the recipe's data section; `shards` names the sources.
        tokenizer: turns captions into ids.
        preprocessing: of the encoder.
        max_length: longest caption in tokens; longer ones are cut.

    Raises:
        DataError: if a source cannot be read, or is not on this disk and there is no folder for copies.
    """

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: CaptionTokenizer,
        preprocessing: Preprocessing,
        max_length: int,
    ) -> None:
        self.settings = settings
        self._tokenizer, self._preprocessing, self._max_length = tokenizer, preprocessing, max_length
        self._shards: list[Shard] = []
        self._weights: list[float] = []
        for source in settings.shards:
            found = read_manifest(source.path)
            self._shards += found
            self._weights += [source.weight] * len(found)
        self._numbers = SampleNumbers(self._shards)
        self._cache = self._cache_for_remote()
        self._open: OrderedDict[int, ShardFile] = OrderedDict()

    def draws(self, seed: int, epoch: int, views: int) -> Sequence[Draw]:
        """Every caption of every source once (times its weight), in the order of `ShardOrder`."""
        return ShardOrder(
            self._shards,
            self._weights,
            seed=seed,
            epoch=epoch,
            captions_per_image=self.settings.captions_per_image,
            views=views,
            mixed=self.settings.shards_mixed,
        )

    def __getitem__(self, part: Part) -> CaptionBatch:
        """Read one part, without the samples that cannot be read; a blank one if none can."""
        pixels: list[Tensor] = []
        rows: list[Sequence[str]] = []
        ids, places, unreadable = [], [], []
        for place, draw in enumerate(part):
            try:
                sample, name = self._sample(draw.record)
                captions = [sample.captions[number] for number in draw.captions]
                image = load_image(EncodedImage(name, sample.image))
                pixels.append(image_view(image, sample.key, draw.view, self._preprocessing, draw.epoch))
            except IndexError:
                unreadable.append(f"{name}: other captions than in the manifest; index the shards again")
            except (ImageError, DataError) as error:
                unreadable.append(str(error))
            else:
                rows.append(captions)
                ids.append(name)
                places.append(place)
        is_blank = not pixels
        if is_blank:
            size = self._preprocessing.size
            pixels, rows = [torch.zeros(3, size, size)], [[""] * len(part[0].captions)]
            ids, places = [""], [0]
        tokens = [
            fit_length(
                row,
                self._max_length,
                end_id=self._tokenizer.end_id,
                padding_id=self._tokenizer.padding_id,
                learn_padding=self.settings.learn_padding,
            )
            for row in self._tokenizer.encode_batch(list(chain.from_iterable(rows)))
        ]
        return collate(
            tokens,
            ids,
            padding_id=self._tokenizer.padding_id,
            pixels=pixels,
            places=places,
            unreadable=unreadable,
            is_blank=is_blank,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes open the files themselves."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _sample(self, record: int) -> tuple[Sample, str]:
        """A sample, and its name for messages."""
        number, place = self._numbers.locate(record)
        sample = self._file(number)[place]
        return sample, f"{self._shards[number].url}/{sample.key}"

    def _file(self, number: int) -> ShardFile:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        url = self._shards[number].url
        path = local_path(url)
        if path is None:
            assert self._cache is not None
            path = self._cache.fetch(url)
        file = ShardFile(path)
        self._open[number] = file
        # an epoch comes back to a shard only within its group; two groups touch where one ends
        while len(self._open) > 2 * self.settings.shards_mixed:
            self._open.popitem(last=False)[1].close()
        if self._cache is not None:
            self._cache.make_room(4 * self.settings.shards_mixed)
        return file

    def _cache_for_remote(self) -> ShardCache | None:
        """None where every shard lies on this disk: nothing is copied then, and no folder touched."""
        elsewhere = next((shard.url for shard in self._shards if local_path(shard.url) is None), None)
        if elsewhere is None:
            return None
        if self.settings.shard_cache is None:
            raise DataError(
                f"{elsewhere}: not on this machine; set data.shard_cache to a folder for local copies"
            )
        return ShardCache(self.settings.shard_cache)
