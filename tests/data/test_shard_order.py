from collections import Counter
from itertools import chain

import numpy as np
import pytest

from ddcap.data.shard_files import Shard
from ddcap.data.shards import ShardOrder

COUNTS = [[5, 5, 1], [1], [2, 3, 0, 7], [4] * 10, [1, 1]]
SHARDS = [Shard(f"{number}.tar", np.array(counts)) for number, counts in enumerate(COUNTS)]
SAMPLES = list(chain.from_iterable(COUNTS))


def order(weights=None, *, seed=0, epoch=0, captions_per_image=1, views=1, mixed=2):
    return ShardOrder(
        SHARDS,
        weights or [1.0] * len(SHARDS),
        seed=seed,
        epoch=epoch,
        captions_per_image=captions_per_image,
        views=views,
        mixed=mixed,
    )


@pytest.mark.parametrize("mixed", [1, 2, 100])
@pytest.mark.parametrize("captions_per_image", [1, 2, 5])
def test_every_caption_of_every_sample_comes_exactly_once(captions_per_image, mixed):
    draws = list(order(captions_per_image=captions_per_image, mixed=mixed))
    assert len(draws) == len(order(captions_per_image=captions_per_image, mixed=mixed))
    for sample, count in enumerate(SAMPLES):
        mine = [draw.captions for draw in draws if draw.record == sample]
        counted = Counter(chain.from_iterable(mine))
        assert set(counted) == set(range(count)) and len(mine) == -(-count // captions_per_image)
        assert sum(counted.values()) - count == -count % captions_per_image  # the last group is filled up


def test_the_order_follows_from_seed_and_epoch():
    assert list(order()) == list(order())
    epochs = [[draw.record for draw in order(epoch=epoch)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] and sorted(epochs[0]) == sorted(epochs[1])
    assert list(order(seed=1)) != list(order())
    assert {draw.view for draw in order(views=3)} == {0, 1, 2}
    assert {draw.epoch for draw in order(epoch=4)} == {4}


def test_any_part_of_the_order_can_be_read_alone():
    whole = list(order())
    assert order()[7:20] == whole[7:20] and order()[-1] == whole[-1]
    with pytest.raises(IndexError):
        order()[len(whole)]


def test_few_shards_are_mixed_at_a_time():
    starts = np.cumsum([0, *map(len, COUNTS)])
    seen = [int(np.searchsorted(starts, draw.record, side="right")) - 1 for draw in order(mixed=2)]
    places = {shard: [place for place, one in enumerate(seen) if one == shard] for shard in set(seen)}
    for place in range(len(seen)):
        open_now = [shard for shard, where in places.items() if where[0] <= place <= where[-1]]
        assert len(open_now) <= 2
    assert any(a != b for a, b in zip(seen, sorted(seen), strict=True))


def test_weights_draw_a_source_more_or_less_often():
    doubled = Counter(draw.record for draw in order([2.0, 1.0, 1.0, 1.0, 1.0]))
    assert [doubled[sample] for sample in range(4)] == [10, 10, 2, 1]
    halves = [order([1.0, 1.0, 1.0, 0.5, 1.0], epoch=epoch) for epoch in range(30)]
    assert {len(half) for half in halves} == {len(order()) - 20}  # an epoch is always as long
    seen = [frozenset((d.record, d.captions) for d in half if 8 <= d.record < 18) for half in halves]
    assert {len(one) for one in seen} == {20} and len(set(seen)) > 20  # but not always of the same captions
    assert len(order([0.25, 3.5, 1.0, 1.0, 1.0])) == 3 + 3 + 12 + 40 + 2  # a quarter of 11, and 3 times 1


def test_a_second_time_goes_through_the_captions_in_another_order():
    twice = [draw for draw in order([1.0, 1.0, 1.0, 2.0, 1.0], captions_per_image=2) if draw.record == 10]
    assert len(twice) == 4
    assert Counter(chain.from_iterable(draw.captions for draw in twice)) == {0: 2, 1: 2, 2: 2, 3: 2}
