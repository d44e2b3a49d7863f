"""In which order an epoch goes through shards: a pure function of (seed, epoch), without opening one.

The shards of an epoch are shuffled and taken some at a time; the pictures of those are shuffled together. So
every process and loader knows the whole order, reads few shards at once, and none reads what another does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddcap.data.batches import Draw
from ddcap.data.manifest import SampleNumbers, Shard

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
        mixed: shards whose pictures are shuffled together.
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
