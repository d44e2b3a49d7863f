import dataclasses
from collections import Counter
from itertools import chain

import pytest
import torch

from ddcap.data.batches import CaptionData, PixelSource, StepPlan, training_steps
from ddcap.data.feature_cache import FeatureCache, view_pixels
from ddcap.data.images import Preprocessing
from ddcap.data.records import CaptionedImage, load_karpathy
from ddcap.errors import DataError
from ddcap.model.encoders import build_image_encoder
from ddcap.recipe import DataSettings
from ddcap.settings import EncoderSettings

PREPROCESSING = Preprocessing(16, "squash", (0, 0, 0), (1, 1, 1))
WORDS = ["a", "cat", "dog", "cup", "woman", "rocket", "people", "wall", "camera"]


@pytest.fixture(scope="module")
def records(captions_json, photos):
    return load_karpathy(captions_json, photos[0].parent)


@pytest.fixture(scope="module")
def uneven(photos):
    """Fourteen records with 1 to 7 captions, all captions different."""
    counts = [1, 2, 3, 4, 5, 6, 7] * 2
    return [
        CaptionedImage(
            str(number),
            photos[number % len(photos)],
            "train",
            tuple(f"{WORDS[number % 9]} {'wall ' * k}{WORDS[number // 9]} {number}" for k in range(count)),
        )
        for number, count in enumerate(counts)
    ]


def make(records, tokenizer, max_length=40, preprocessing=PREPROCESSING, **settings):
    source = PixelSource([record.path for record in records], preprocessing)
    settings = {"captions_per_image": 1, "workers": 0, **settings}
    return CaptionData(records, tokenizer, source, DataSettings(**settings), max_length)


@pytest.mark.parametrize("captions_per_image", [1, 2, 5])
def test_every_caption_is_drawn_once_and_only_last_groups_are_filled_up(
    captions_per_image, uneven, tiny_tokenizer
):
    data = make(uneven, tiny_tokenizer, captions_per_image=captions_per_image)
    draws = data.draws(seed=3, epoch=1, views=1)
    assert all(len(draw.captions) == captions_per_image for draw in draws)
    for number, record in enumerate(uneven):
        mine = [draw for draw in draws if draw.record == number]
        counted = Counter(chain.from_iterable(draw.captions for draw in mine))
        assert set(counted) == set(range(len(record.captions)))
        assert len(mine) == -(-len(record.captions) // captions_per_image)
        surplus = sum(counted.values()) - len(record.captions)
        assert surplus == -len(record.captions) % captions_per_image
        # groups that need no filling hold different captions
        repeating = [draw for draw in mine if len(set(draw.captions)) < captions_per_image]
        assert len(repeating) <= 1


def test_an_exact_number_of_captions_is_drawn_exactly_once(records, tiny_tokenizer):
    five = [record for record in records if len(record.captions) == 5]
    for captions_per_image in (1, 5):
        draws = make(five, tiny_tokenizer, captions_per_image=captions_per_image).draws(0, 0, 1)
        counted = Counter((draw.record, caption) for draw in draws for caption in draw.captions)
        assert set(counted.values()) == {1}
        assert len(counted) == 5 * len(five)


def test_draws_follow_from_seed_and_epoch(uneven, tiny_tokenizer):
    data = make(uneven, tiny_tokenizer, captions_per_image=2)
    again = make(uneven, tiny_tokenizer, captions_per_image=2)
    assert data.draws(1, 2, 3) == again.draws(1, 2, 3)
    places = {tuple((d.record, d.captions) for d in data.draws(*key, 3)) for key in [(1, 2), (2, 2), (1, 3)]}
    assert len(places) == 3
    order = [draw.record for draw in data.draws(1, 2, 3)]
    assert order != sorted(order)


def test_views_are_all_used_and_never_more(uneven, tiny_tokenizer):
    data = make(uneven, tiny_tokenizer)
    assert {draw.view for draw in data.draws(0, 0, 3)} == {0, 1, 2}
    assert {draw.view for draw in data.draws(0, 0, 1)} == {0}


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (1, 2), (2, 1), (4, 1), (1, 4), (2, 2)])
def test_processes_and_parts_share_a_step_without_rest(processes, accumulation, uneven, tiny_tokenizer):
    data = make(uneven, tiny_tokenizer, captions_per_image=2)
    (alone,) = {StepPlan(5, 4).steps_per_epoch(data)}
    whole = StepPlan(5, 4).parts(data, 7, 20)
    plans = [StepPlan(5, 4, processes, process, accumulation) for process in range(processes)]
    shares = [plan.parts(data, 7, 20) for plan in plans]
    assert all(plan.steps_per_epoch(data) == alone for plan in plans) and len(whole) == 13
    for step, expected in enumerate(whole):
        parts = [part for share in shares for part in share[step * accumulation :][:accumulation]]
        assert len(parts) == processes * accumulation
        assert tuple(chain.from_iterable(parts)) == expected


def test_number_of_steps_of_an_epoch(uneven, tiny_tokenizer):
    data = make(uneven, tiny_tokenizer)  # 56 captions
    assert StepPlan(0, 8).steps_per_epoch(data) == 7
    assert StepPlan(0, 9).steps_per_epoch(data) == 56 / 9
    assert StepPlan(0, 56).steps_per_epoch(data) == 1
    assert len(StepPlan(0, 9).parts(data, 4, 11)) == 7
    with pytest.raises(
        DataError, match=r"has 56 captions, fewer than one step of 57; lower training\.batch_size"
    ):
        StepPlan(0, 57).steps_per_epoch(data)


@pytest.mark.parametrize("images", [4, 9, 25])
def test_no_caption_is_lost_at_the_end_of_an_epoch(images, uneven, tiny_tokenizer):
    """Steps go on from one epoch into the next: after n epochs' draws every caption has come n times."""
    data = make(uneven, tiny_tokenizer)
    stream = list(chain.from_iterable(StepPlan(3, images).parts(data, 0, -(-3 * 56 // images))))
    for epoch in range(3):
        draws = stream[56 * epoch : 56 * (epoch + 1)]
        assert draws == data.draws(3, epoch, 1)
        assert set(Counter((draw.record, draw.captions) for draw in draws).values()) == {1}


def same(left, right):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(left).values(), vars(right).values(), strict=True)
    )


def steps(data, first, last, **plan):
    return list(training_steps(data, StepPlan(7, 4, **plan), first, last))


def test_a_step_is_a_list_of_its_parts_with_pixels(records, tiny_tokenizer):
    data = make(records, tiny_tokenizer, captions_per_image=2, views=3)
    (step,) = steps(data, 0, 1, accumulation=2)
    part, draws = step[0], StepPlan(7, 4, accumulation=2).parts(data, 0, 1)[0]
    assert len(step) == 2 and len(draws) == 2
    assert part.tokens.shape[0] == 4 and part.pixels.shape == (2, 3, 16, 16)
    assert part.memory is None and part.summary is None
    for row, draw in enumerate(draws):
        path = records[draw.record].path
        assert torch.equal(part.pixels[row], view_pixels(path, draw.view, PREPROCESSING, draw.epoch))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("start", [1, 5, 7, 12])
def test_a_resumed_run_reads_the_tail_of_an_uninterrupted_one(start, accumulation, uneven, tiny_tokenizer):
    data = make(uneven, tiny_tokenizer, captions_per_image=2, views=4)
    per_epoch = StepPlan(7, 4).steps_per_epoch(data)
    assert per_epoch == 8  # so the resumed starts lie within the first and the second epoch
    whole = steps(data, 0, 18, accumulation=accumulation)
    tail = steps(data, start, 18, accumulation=accumulation)
    assert len(whole) == 18 and len(tail) == 18 - start
    for left, right in zip(whole[start:], tail, strict=True):
        assert all(same(a, b) for a, b in zip(left, right, strict=True))
    assert not same(whole[0][0], whole[int(per_epoch)][0])


def test_a_range_may_end_within_an_epoch_and_be_empty(uneven, tiny_tokenizer):
    data = make(uneven, tiny_tokenizer, captions_per_image=2)
    assert len(steps(data, 6, 11)) == 5
    assert steps(data, 5, 5) == []


def test_loader_processes_change_nothing(records, tiny_tokenizer):
    alone = steps(make(records, tiny_tokenizer, views=4), 0, 3)
    helped = steps(make(records, tiny_tokenizer, views=4, workers=1), 0, 3)
    for left, right in zip(alone, helped, strict=True):
        assert all(same(a, b) for a, b in zip(left, right, strict=True))


def test_fresh_crops_in_every_epoch(records, tiny_tokenizer):
    data = make(records[:1], tiny_tokenizer)
    first = StepPlan(0, 1).parts(data, 0, 1)[0]
    (draw,) = first
    crops = [data[(dataclasses.replace(draw, view=2, epoch=epoch),)].pixels for epoch in (0, 1, 0)]
    assert torch.equal(crops[0], crops[2]) and not torch.equal(crops[0], crops[1])


def test_padding_lengths_and_positions(uneven, tiny_tokenizer):
    data = make(uneven, tiny_tokenizer, captions_per_image=2)
    for part in StepPlan(0, 4).parts(data, 0, 5):
        batch = data[part]
        rows = [
            tiny_tokenizer.encode(uneven[draw.record].captions[caption])
            for draw in part
            for caption in draw.captions
        ]
        longest = max(map(len, rows))
        assert batch.tokens.shape == (8, longest) and batch.tokens.dtype == torch.int64
        assert batch.lengths.tolist() == [len(row) for row in rows]
        flat = batch.tokens.flatten()
        assert flat[batch.positions].tolist() == list(chain.from_iterable(rows))
        padding = set(range(flat.numel())) - set(batch.positions.tolist())
        assert all(flat[place] == tiny_tokenizer.padding_id for place in padding)
        for row, ids in zip(batch.tokens.tolist(), rows, strict=True):
            assert row == ids + [tiny_tokenizer.padding_id] * (longest - len(ids))
        assert sum(map(len, rows)) == len(batch.positions)
        assert batch.image_ids == tuple(uneven[draw.record].image_id for draw in part)


def test_cached_features_come_instead_of_pixels(records, tiny_tokenizer, tiny_clip_folder, tmp_path):
    settings = EncoderSettings(kind="clip", name=str(tiny_clip_folder), image_size=32, fit="crop")
    cache = FeatureCache(
        tmp_path, build_image_encoder(settings), [record.path for record in records], views=2
    )
    data = CaptionData(records, tiny_tokenizer, cache, DataSettings(views=2, workers=0), 40)
    (part, *_) = StepPlan(0, 4).parts(data, 0, 2)
    batch = data[part]
    assert batch.pixels is None
    assert batch.memory.dtype == batch.summary.dtype == torch.float16
    for row, draw in enumerate(part):
        memory, summary = cache.read(draw.record, draw.view)
        assert torch.equal(batch.memory[row], memory)
        assert torch.equal(batch.summary[row], summary.float())


def test_to_moves_every_tensor_and_nothing_else(records, tiny_tokenizer):
    ((batch,),) = steps(make(records, tiny_tokenizer), 0, 1)
    moved = batch.to(torch.device("meta"))
    for name, value in vars(moved).items():
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta", name
        else:
            assert value == getattr(batch, name)


def test_long_captions_are_dropped(uneven, tiny_tokenizer):
    everything = make(uneven, tiny_tokenizer)
    limit = sorted(len(ids) for captions in everything.captions for ids in captions)[20]
    data = make(uneven, tiny_tokenizer, max_length=limit)
    kept = [[ids for ids in captions if len(ids) <= limit] for captions in everything.captions]
    assert data.captions == kept
    assert 0 < sum(map(len, kept)) < sum(map(len, everything.captions))
    drawn = {(draw.record, caption) for draw in data.draws(0, 0, 1) for caption in draw.captions}
    assert drawn == {(record, k) for record, captions in enumerate(kept) for k in range(len(captions))}


def test_long_captions_are_truncated_to_end_with_the_end_token(uneven, tiny_tokenizer):
    everything = make(uneven, tiny_tokenizer)
    limit = sorted(len(ids) for captions in everything.captions for ids in captions)[20]
    data = make(uneven, tiny_tokenizer, max_length=limit, long_captions="truncate")
    touched = 0
    for before, after in zip(chain(*everything.captions), chain(*data.captions), strict=True):
        if len(before) <= limit:
            assert after == before
        else:
            touched += 1
            assert after == [*before[: limit - 1], tiny_tokenizer.end_id]
    assert touched


def test_an_image_all_of_whose_captions_are_too_long_is_left_out(records, tiny_tokenizer):
    endless = dataclasses.replace(records[0], captions=("the wall " * 30,))
    data = make([endless, *records[1:]], tiny_tokenizer)
    assert 0 not in {draw.record for draw in data.draws(0, 0, 1)}
    with pytest.raises(DataError, match=r"no caption has at most 40 tokens; raise model\.max_length or set"):
        make([endless], tiny_tokenizer)
    assert (
        make([endless], tiny_tokenizer, long_captions="truncate").captions[0][0][-1] == tiny_tokenizer.end_id
    )


def test_learned_padding_makes_end_tokens_real_positions(uneven, tiny_tokenizer):
    longest = 20
    plain, padded = (
        make(uneven, tiny_tokenizer, max_length=longest, learn_padding=learn) for learn in (False, True)
    )
    for before, after in zip(plain.captions, padded.captions, strict=True):
        for ids, filled in zip(before, after, strict=True):
            assert filled[: len(ids)] == ids
            assert len(filled) == longest
            assert set(filled[len(ids) :]) <= {tiny_tokenizer.end_id}
    part = StepPlan(seed=0, images_per_step=4).parts(padded, 0, 1)[0]
    batch = padded[part]
    assert batch.lengths.tolist() == [longest] * 4
    assert len(batch.positions) == 4 * longest
