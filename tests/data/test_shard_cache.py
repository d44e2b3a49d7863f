import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from ddcap.data.shard_files import ShardCache, local_path
from ddcap.errors import DataError


@pytest.fixture
def urls():
    """Four files of a store that is not this disk."""
    store = fsspec.filesystem("memory")
    for number in range(4):
        store.pipe(f"/shards/{number}.tar", b"content %d" % number)
    yield [f"memory://shards/{number}.tar" for number in range(4)]
    store.rm("/shards", recursive=True)


def copies(folder):
    return {path for path in folder.iterdir() if path.suffix == ".tar"}


def test_local_paths_are_told_from_remote_ones(tmp_path):
    assert local_path(f"file://{tmp_path}/a.tar") == tmp_path / "a.tar" == local_path(f"{tmp_path}/a.tar")
    assert local_path("shards/a.tar") == Path("shards/a.tar")
    assert local_path("s3://shards/a.tar") is None and local_path("https://x/a.tar") is None


def test_a_shard_is_copied_once(urls, tmp_path):
    cache = ShardCache(tmp_path / "cache")
    copy = cache.fetch(urls[1])
    assert copy.parent == tmp_path / "cache" and copy.read_bytes() == b"content 1"
    fsspec.filesystem("memory").rm("/shards/1.tar")
    assert cache.fetch(urls[1]) == copy  # not asked for again
    with pytest.raises(DataError, match=r"other\.tar: cannot be read"):
        cache.fetch("memory://shards/other.tar")
    with pytest.raises(DataError, match=r"nosuch://.*cannot be read"):
        cache.fetch("nosuch://a.tar")
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the copy and the marker


def test_room_is_made_by_the_longest_unused_and_by_nothing_else(urls, tmp_path):
    cache = ShardCache(tmp_path)
    made = [cache.fetch(url) for url in urls]
    for age, path in enumerate(made):
        os.utime(path, (1000 + age, 1000 + age))
    (tmp_path / "mine.tar").write_bytes(b"put here by somebody")
    os.utime(tmp_path / "mine.tar", (1, 1))
    cache.fetch(urls[0])  # used again just now
    cache.make_room(2)
    assert copies(tmp_path) == {made[0], made[3], tmp_path / "mine.tar"}


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "000000.tar").write_bytes(b"original")
    with pytest.raises(DataError, match=r"not copies of shards; set data\.shard_cache") as caught:
        ShardCache(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]
    with pytest.raises(DataError, match="cannot store copies"):
        ShardCache(tmp_path / "000000.tar")


def test_several_take_one_new_folder_at_once(tmp_path):
    # files of this disk: fsspec's files in memory have one position for all who read them
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(b"content %d" % number)

    def use(number):
        cache = ShardCache(tmp_path / "a" / "cache")
        return cache.fetch(f"file://{tmp_path}/{number % 4}.tar").read_bytes()

    with ThreadPoolExecutor(8) as threads:
        contents = list(threads.map(use, range(16)))
    assert contents == [b"content %d" % (number % 4) for number in range(16)]
    assert len(copies(tmp_path / "a" / "cache")) == 4
