import json
import shutil

import pytest

from ddcap.commands import main
from ddcap.data.images import EncodedImage, load_image
from ddcap.data.preparation import write_shards
from ddcap.data.records import load_karpathy
from ddcap.data.shard_files import ShardFile, read_manifest
from ddcap.errors import DataError


@pytest.fixture
def records(captions_json, photos):
    return load_karpathy(captions_json, photos[0].parent)


def contents(folder):
    """Captions to image of all samples of all shards."""
    files = [ShardFile(path) for path in sorted(folder.glob("*.tar"))]
    samples = [file[number] for file in files for number in range(len(file))]
    return {sample.captions: sample.image for sample in samples}


@pytest.mark.parametrize("processes", [1, 2])
def test_every_image_lands_in_one_shard_as_it_was(records, tmp_path, processes):
    result = write_shards(records, tmp_path, samples_per_shard=3, processes=processes)
    assert (result.shards, result.samples) == (-(-len(records) // 3), len(records))
    expected = {record.captions: record.path.read_bytes() for record in records}
    assert contents(tmp_path) == expected
    shards = read_manifest(str(tmp_path))
    assert [len(shard.captions) for shard in shards[:-1]] == [3] * (len(shards) - 1)
    assert sum(int(shard.captions.sum()) for shard in shards) == sum(len(r.captions) for r in records)


def test_a_folder_without_a_manifest_is_indexed_once(records, tmp_path):
    write_shards(records, tmp_path, samples_per_shard=3)
    expected = read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").unlink()
    for _ in ("indexed", "read"):
        found = read_manifest(str(tmp_path))
        assert [shard.url for shard in found] == [shard.url for shard in expected]
        assert all((a.captions == b.captions).all() for a, b in zip(found, expected, strict=True))
    assert (tmp_path / "manifest.json").exists()


def test_a_stopped_writing_goes_on_where_it_stopped(records, tmp_path):
    write_shards(records, tmp_path, samples_per_shard=2)
    whole = contents(tmp_path)
    paths = sorted(tmp_path.glob("*.tar"))
    paths[1].unlink()
    (tmp_path / "manifest.json").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in paths if path.exists()}
    write_shards(records, tmp_path, samples_per_shard=2)
    assert contents(tmp_path) == whole and (tmp_path / "manifest.json").exists()
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times
    write_shards(records, tmp_path, samples_per_shard=2, side=32)  # other settings: written again
    assert all((tmp_path / name).stat().st_mtime_ns != times[name] for name in times)
    with pytest.raises(DataError, match="which is from other data"):
        write_shards(records[:2], tmp_path, samples_per_shard=2)


def test_images_are_resized_to_the_given_side(records, tmp_path):
    write_shards(records, tmp_path, side=48)
    for image in contents(tmp_path).values():
        assert min(load_image(EncodedImage("a", image)).size) == 48


def test_the_command_leaves_out_what_cannot_be_read(captions_json, photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos[0].parent, folder)
    (folder / photos[0].name).write_bytes(photos[0].read_bytes()[:3000])
    command = ["data", "shard", str(captions_json), str(tmp_path / "out"), "--images", str(folder)]
    assert main([*command, "--workers", "1", "--samples-per-shard", "2"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(tmp_path / "out")
    assert f"left out: {folder / photos[0].name}: damaged" in output.err and "1 left out" in output.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["unreadable"]) == 1


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json and no tar files"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="damaged"):
        read_manifest(str(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest("memory://nowhere")
