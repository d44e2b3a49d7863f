import os
import shutil

import pytest

from ddcap.data.shard_file import ShardFile, fetch, make_room, write_shard
from ddcap.errors import DataError


@pytest.fixture
def samples(photos):
    return [
        (
            f"key{number}",
            photo.suffix,
            photo.read_bytes(),
            [f"caption {k} of {number}" for k in range(number + 1)],
        )
        for number, photo in enumerate(photos[:4])
    ]


@pytest.fixture
def shard(samples, tmp_path):
    path = tmp_path / "000000.tar"
    assert write_shard(path, samples) == [1, 2, 3, 4]
    return path


def test_what_is_written_is_read_in_any_order(shard, samples):
    file = ShardFile(shard)
    assert len(file) == 4 and file.caption_counts() == [1, 2, 3, 4]
    for number in (2, 0, 3, 1, 2):
        key, _, picture, captions = samples[number]
        assert (file[number].key, file[number].picture) == (key, picture)
        assert file[number].captions == tuple(captions)


def test_webdataset_reads_it(shard, samples):
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [key for key, *_ in samples]
    assert found[1]["jpg"] == samples[1][2]
    assert found[3]["txt"].decode().splitlines() == samples[3][3]


def test_a_shard_as_img2dataset_writes_it(tmp_path, photos):
    """Picture, one caption, and a JSON of metadata; some downloads failed and left only that."""
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "00000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            sample = {"__key__": f"{number:09d}", "json": {"url": "http://x", "status": "success"}}
            if number != 1:
                sample |= {"jpg": photos[number].read_bytes(), "txt": f"caption {number}"}
            writer.write(sample)
    file = ShardFile(path)
    assert [file[number].key for number in range(len(file))] == ["000000000", "000000002"]
    assert file[1].captions == ("caption 2",) and file[1].picture == photos[2].read_bytes()


def test_a_shard_that_is_cut_off_gives_what_came_before(shard, samples):
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(samples[2][2]) - 700])
    file = ShardFile(shard)
    assert file[1].captions == tuple(samples[1][3])
    with pytest.raises(DataError, match=r"000000\.tar: ends before sample 2"):
        file[2]


def test_no_tar_file_is_one_line(tmp_path, photos):
    with pytest.raises(DataError, match="not a tar file, or damaged"):
        ShardFile(photos[0])
    with pytest.raises(DataError, match="not a tar file, or damaged"):
        ShardFile(tmp_path / "none.tar")


def test_a_shard_that_cannot_be_written_leaves_nothing(samples, tmp_path):
    (tmp_path / "000000.tar").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_shard(tmp_path / "000000.tar", samples)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]


def test_a_local_shard_is_read_in_place_and_another_is_copied(shard, tmp_path):
    assert fetch(str(shard), None) == shard
    url = f"file://{shard}"  # through fsspec, as s3:// or https:// would go
    copy = fetch(url, tmp_path / "cache")
    assert copy.parent == tmp_path / "cache" and copy.read_bytes() == shard.read_bytes()
    shard.unlink()
    assert fetch(url, tmp_path / "cache") == copy  # not asked for again
    with pytest.raises(DataError, match=r"set data\.shard_cache"):
        fetch(url, None)
    with pytest.raises(DataError, match=r"other\.tar: cannot be read"):
        fetch(f"file://{tmp_path}/other.tar", tmp_path / "cache")
    with pytest.raises(DataError, match=r"nosuch://.*cannot be read"):
        fetch("nosuch://a.tar", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [copy.name]


def test_room_is_made_by_the_longest_unused(shard, tmp_path):
    folder = tmp_path / "cache"
    copies = []
    for number in range(4):
        url = f"file://{shutil.copy(shard, tmp_path / f'{number}.tar')}"
        copies.append(fetch(url, folder))
    for age, path in enumerate(copies):
        os.utime(path, (1000 + age, 1000 + age))
    fetch(f"file://{tmp_path / '0.tar'}", folder)  # used again just now
    make_room(folder, 2)
    assert set(folder.iterdir()) == {copies[0], copies[3]}
