import dataclasses
import functools
import http.server
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from ddcap.data.batches import StepPlan, training_steps
from ddcap.data.feature_cache import view_pixels
from ddcap.data.images import Preprocessing
from ddcap.data.preparation import write_shards
from ddcap.data.records import load_karpathy
from ddcap.data.shards import ShardData
from ddcap.errors import DataError
from ddcap.recipe import DataSettings, ShardSource

SHARING = [(1, 0, 1), (2, 0, 1), (2, 2, 2), (1, 2, 1)]
PREPROCESSING = Preprocessing(16, "squash", (0, 0, 0), (1, 1, 1))


@pytest.fixture
def folders(captions_json, photos, tmp_path):
    """Two sources: the first four images, and the others."""
    records = [
        dataclasses.replace(record, captions=tuple(f"{number} {text}" for text in record.captions))
        for number, record in enumerate(load_karpathy(captions_json, photos[0].parent))
    ]
    write_shards(records[:4], tmp_path / "first", samples_per_shard=2)
    write_shards(records[4:], tmp_path / "second", samples_per_shard=1)
    return records, [str(tmp_path / "first"), str(tmp_path / "second")]


def make(folders, tokenizer, *, max_length=40, **settings):
    sources = tuple(ShardSource(folder) for folder in folders[1])
    settings = {"workers": 0, "shards_mixed": 2, "shards": sources, **settings}
    return ShardData(DataSettings(**settings), tokenizer, PREPROCESSING, max_length)


def captions_of(batches, tokenizer):
    rows = [
        row for batch in batches for row in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
    ]
    return [tokenizer.decode(ids[:length]) for ids, length in rows]


@pytest.mark.parametrize(
    ("processes", "workers", "accumulation"), [(1, 0, 1), (2, 0, 1), (2, 2, 2), (1, 2, 1)]
)
def test_no_caption_is_lost_or_doubled_among_processes_and_workers(
    folders, tiny_tokenizer, processes, workers, accumulation
):
    data = make(folders, tiny_tokenizer, workers=workers)
    expected = Counter(
        tiny_tokenizer.decode(tiny_tokenizer.encode(text))
        for record in folders[0]
        for text in record.captions
    )
    size = processes * accumulation
    plans = [StepPlan(3, size, processes, process, accumulation) for process in range(processes)]
    epochs = size  # after so many no step is shared with the next epoch
    count = epochs * plans[0].steps_per_epoch(data)
    assert count == int(count)
    found = Counter()
    for plan in plans:
        for parts in training_steps(data, plan, 0, int(count)):
            found.update(captions_of(parts, tiny_tokenizer))
    assert found == Counter({text: times * epochs for text, times in expected.items()})


@pytest.mark.parametrize("start", [1, 5, 13])
def test_a_resumed_run_reads_the_tail_of_an_uninterrupted_one(folders, tiny_tokenizer, start):
    whole = list(training_steps(make(folders, tiny_tokenizer, views=3), StepPlan(1, 3), 0, 15))
    tail = list(training_steps(make(folders, tiny_tokenizer, views=3), StepPlan(1, 3), start, 15))
    for (left,), (right,) in zip(whole[start:], tail, strict=True):
        assert left.image_ids == right.image_ids
        assert torch.equal(left.tokens, right.tokens) and torch.equal(left.pixels, right.pixels)


def test_another_number_of_processes_reads_the_same_steps(folders, tiny_tokenizer):
    data = make(folders, tiny_tokenizer)
    alone = [step[0].image_ids for step in training_steps(data, StepPlan(1, 4), 0, 6)]
    pairs = [[s[0].image_ids for s in training_steps(data, StepPlan(1, 4, 2, p), 0, 6)] for p in (0, 1)]
    assert alone == [first + second for first, second in zip(*pairs, strict=True)]


def test_images_belong_to_their_captions(folders, tiny_tokenizer):
    data = make(folders, tiny_tokenizer, captions_per_image=2)
    by_text = {tiny_tokenizer.decode(tiny_tokenizer.encode(t)): r for r in folders[0] for t in r.captions}
    for ((batch),) in training_steps(data, StepPlan(0, 2), 0, 4):
        texts = captions_of([batch], tiny_tokenizer)
        for number, pixels in enumerate(batch.pixels):
            (path,) = {by_text[text].path for text in texts[2 * number : 2 * number + 2]}
            assert torch.equal(pixels, view_pixels(path, 0, PREPROCESSING))


def test_long_captions_are_cut(folders, tiny_tokenizer):
    ((batch,),) = training_steps(make(folders, tiny_tokenizer, max_length=4), StepPlan(0, 8), 0, 1)
    assert (
        batch.tokens.shape[1] == 4
        and (batch.tokens[batch.lengths == 4][:, -1] == tiny_tokenizer.end_id).all()
    )


@pytest.fixture
def web_server(tmp_path):
    """The address of a server of `tmp_path` on this machine."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_local_shards_are_neither_copied_nor_deleted(folders, tiny_tokenizer, tmp_path, scheme):
    """Not even with their own folder for a cache."""
    records, places = folders
    write_shards(records, places[1], samples_per_shard=1)  # eight, of which a cache would keep four
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.tar")}
    sources = (records, [f"{scheme}{place}" for place in places])
    data = make(sources, tiny_tokenizer, shard_cache=places[1], shards_mixed=1)
    for draw in data.draws(0, 0, views=1)[::3]:  # some of every shard
        data[(draw,)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.tar")} == before
    make(sources, tiny_tokenizer, shard_cache=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_remote_shards_need_a_folder_for_copies_that_is_their_own(folders, tiny_tokenizer, web_server):
    pytest.importorskip("aiohttp")
    records, places = folders
    mixed = (records, [f"{web_server}/first", places[1]])
    with pytest.raises(DataError, match=r"first/000000\.tar: not on this machine; set data\.shard_cache"):
        make(mixed, tiny_tokenizer)
    with pytest.raises(DataError, match="contains files that are not copies of shards"):
        make(mixed, tiny_tokenizer, shard_cache=places[1])


def test_shards_elsewhere_are_copied_and_few_are_kept(folders, tiny_tokenizer, tmp_path, web_server):
    pytest.importorskip("aiohttp")
    records, places = folders
    elsewhere = (records, [f"{web_server}/{Path(place).name}" for place in places])
    cache = tmp_path / "cache"
    data = make(elsewhere, tiny_tokenizer, shard_cache=str(cache), shards_mixed=1)
    near = make(folders, tiny_tokenizer, shards_mixed=1)
    steps = int(StepPlan(0, 2).steps_per_epoch(data))
    for (far,), (here,) in zip(
        training_steps(data, StepPlan(0, 2), 0, steps),
        training_steps(near, StepPlan(0, 2), 0, steps),
        strict=True,
    ):
        assert torch.equal(far.pixels, here.pixels)
    assert 1 <= len(list(cache.glob("*.tar"))) <= 4


def test_a_damaged_shard_is_left_out_and_said_so(folders, tiny_tokenizer, tmp_path):
    (tmp_path / "first" / "000000.tar").write_bytes(b"no tar")
    data = make(folders, tiny_tokenizer, shards_mixed=100)
    steps = int(StepPlan(0, 8).steps_per_epoch(data))
    batches = [part for parts in training_steps(data, StepPlan(0, 8), 0, steps) for part in parts]
    reasons = {reason for batch in batches for reason in batch.unreadable}
    assert len(reasons) == 1 and "000000.tar: not a tar file" in reasons.pop()
    assert sum(len(batch.image_ids) + len(batch.unreadable) for batch in batches) == 8 * steps


def test_nothing_but_damaged_shards_make_blank_parts(folders, tiny_tokenizer, tmp_path):
    for path in tmp_path.rglob("*.tar"):
        path.write_bytes(b"no tar")
    data = make(folders, tiny_tokenizer, captions_per_image=2)
    ((batch,),) = training_steps(data, StepPlan(0, 4), 0, 1)
    assert batch.is_blank and (batch.words, batch.images) == (0, 0) and len(batch.unreadable) == 4
    assert batch.pixels.shape == (1, 3, 16, 16) and batch.tokens.shape == (2, 1) and batch.places == (0,)
