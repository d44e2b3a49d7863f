import pytest

from ddcap.data.shard_files import ShardFile, write_shard
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


def test_samples_are_read_in_any_order(shard, samples):
    file = ShardFile(shard)
    assert len(file) == 4 and file.caption_counts() == [1, 2, 3, 4]
    for number in (2, 0, 3, 1, 2):
        key, _, image, captions = samples[number]
        assert (file[number].key, file[number].image) == (key, image)
        assert file[number].captions == tuple(captions)


def test_webdataset_reads_our_shards(shard, samples):
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [key for key, *_ in samples]
    assert found[1]["jpg"] == samples[1][2]
    assert found[3]["txt"].decode().splitlines() == samples[3][3]


def test_a_shard_of_img2dataset_is_read(tmp_path, photos):
    """Image, one caption, and a JSON of metadata; some downloads failed and left only that."""
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
    assert file[1].captions == ("caption 2",) and file[1].image == photos[2].read_bytes()


def test_a_shard_that_is_cut_off_gives_what_came_before(shard, samples):
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(samples[2][2]) - 700])
    file = ShardFile(shard)
    assert file[1].captions == tuple(samples[1][3])
    with pytest.raises(DataError, match=r"000000\.tar: ends before sample 2"):
        file[2]


def test_a_file_that_is_not_a_tar_is_one_line(tmp_path, photos):
    with pytest.raises(DataError, match="not a tar file, or damaged"):
        ShardFile(photos[0])
    with pytest.raises(DataError, match="not a tar file, or damaged"):
        ShardFile(tmp_path / "none.tar")


def test_a_shard_that_cannot_be_written_leaves_nothing(samples, tmp_path):
    (tmp_path / "000000.tar").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_shard(tmp_path / "000000.tar", samples)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]
