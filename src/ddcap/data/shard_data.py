"""Pictures of webdataset shards to batches: for data that neither fit a folder nor a list in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ddcap.data.batches import CaptionBatch, Draw, Part, collate, fit_length
from ddcap.data.feature_cache import image_view
from ddcap.data.images import EncodedImage, Preprocessing, load_image
from ddcap.data.manifest import SampleNumbers, Shard, read_manifest
from ddcap.data.shard_cache import ShardCache, local_path
from ddcap.data.shard_file import Sample, ShardFile
from ddcap.data.shard_order import ShardOrder
from ddcap.data.steps import StepData
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DataError, ImageError
from ddcap.recipe import DataSettings


class ShardData(StepData):
    """Captioned pictures of several weighted sources; item = a part, as a `CaptionBatch`.

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
                image = load_image(EncodedImage(name, sample.picture))
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
            raise DataError(f"{elsewhere}: not on this disk; set data.shard_cache to a folder for copies")
        return ShardCache(self.settings.shard_cache)
