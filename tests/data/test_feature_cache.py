import dataclasses
import logging
import os
import pickle
import shutil

import pytest
import torch

from ddcap.data import feature_cache
from ddcap.data.feature_cache import SHARD_SIZE, FeatureCache, view_pixels
from ddcap.errors import DataError, ImageError
from ddcap.model.encoders import build_image_encoder
from ddcap.settings import EncoderSettings


@pytest.fixture(scope="module")
def encoder(tiny_clip_folder):
    settings = EncoderSettings(kind="clip", name=str(tiny_clip_folder), image_size=32, fit="crop")
    return build_image_encoder(settings)


@pytest.fixture
def images(photos, tmp_path):
    """Three photographs of our own, to be changed at will."""
    folder = tmp_path / "images"
    folder.mkdir()
    return [shutil.copy(photo, folder / photo.name) for photo in photos[:3]]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD_SIZE", 2)


def files(cache):
    return sorted(path.name for path in cache.folder.iterdir())


def computed(*arguments, **settings):
    """How many shards a new cache had to compute."""
    numbers = []

    def progress(missing):
        numbers.extend(missing)
        return missing

    FeatureCache(*arguments, **settings, progress=progress)
    return numbers


def test_cached_features_equal_live_ones(encoder, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", encoder, images, views=3)
    for index, path in enumerate(images):
        for view in range(3):
            with torch.inference_mode():
                live = encoder(view_pixels(path, view, encoder.preprocessing).unsqueeze(0))
            memory, summary = cache.read(index, view)
            assert memory.shape == (16, 32) and summary.shape == (16,)
            assert memory.dtype == summary.dtype == torch.float16
            torch.testing.assert_close(memory.float(), live.memory[0], rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(summary.float(), live.summary[0], rtol=2e-3, atol=2e-3)


def test_mixed_precision_is_another_cache_of_nearly_the_same(encoder, images, tmp_path):
    plain = FeatureCache(tmp_path / "cache", encoder, images)
    mixed = FeatureCache(tmp_path / "cache", encoder, images, bf16=True)
    assert len(files(plain)) == 2 * len(plain._files)
    first, second = plain.read(0, 0)[1].float(), mixed.read(0, 0)[1].float()
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=0.05, atol=0.05)


def test_images_and_views_differ(encoder, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", encoder, images, views=3)
    seen = [cache.read(index, view)[1] for index in range(3) for view in range(3)]
    distances = torch.cdist(torch.stack(seen).float(), torch.stack(seen).float())
    assert (distances + torch.eye(9)).min() > 1e-2


@pytest.mark.usefixtures("small_shards")
def test_images_are_found_across_shards(encoder, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", encoder, images)
    assert len(files(cache)) == 2
    for index, path in enumerate(images):
        alone = FeatureCache(tmp_path / "alone", encoder, [path])
        torch.testing.assert_close(cache.read(index, 0), alone.read(0, 0))


def test_a_shard_holds_shard_size_images(encoder, images, tmp_path):
    copies = [shutil.copy(images[0], tmp_path / f"{number}.jpg") for number in range(SHARD_SIZE + 1)]
    cache = FeatureCache(tmp_path / "cache", encoder, copies)
    assert len(files(cache)) == 2
    torch.testing.assert_close(cache.read(SHARD_SIZE, 0), cache.read(0, 0))


def test_a_second_cache_computes_nothing(encoder, images, tmp_path):
    assert computed(tmp_path / "cache", encoder, images) == [0]
    assert computed(tmp_path / "cache", encoder, images) == []


def test_the_key_is_everything_the_features_depend_on(encoder, images, tmp_path, tiny_clip_folder):
    def is_new(encoder=encoder, images=images, **settings):
        return computed(tmp_path / "cache", encoder, images, **settings) == [0]

    assert is_new()
    assert not is_new()
    assert is_new(views=2)
    assert is_new(images=images[:2])
    assert is_new(images=images[::-1])

    settings = EncoderSettings(kind="clip", name=str(tiny_clip_folder), image_size=32, fit="squash")
    assert is_new(encoder=build_image_encoder(settings))
    torch.manual_seed(1)
    other_weights = build_image_encoder(dataclasses.replace(settings, fit="crop"), pretrained=False)
    assert other_weights.preprocessing == encoder.preprocessing
    assert is_new(encoder=other_weights)

    status = images[0].stat()
    os.utime(images[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert is_new()
    images[0].write_bytes(images[0].read_bytes() + b"\0")
    os.utime(images[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert is_new()
    assert not is_new()


@pytest.mark.usefixtures("small_shards")
def test_only_the_shard_of_a_changed_image_is_new(encoder, images, tmp_path):
    assert computed(tmp_path / "cache", encoder, images) == [0, 1]
    os.utime(images[2])
    assert computed(tmp_path / "cache", encoder, images) == [1]


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_build_goes_on_where_it_stopped(encoder, images, tmp_path):
    whole = FeatureCache(tmp_path / "whole", encoder, images)

    def interrupt(missing):
        yield missing[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path / "cut", encoder, images, progress=interrupt)
    (done,) = (tmp_path / "cut").iterdir()
    (pending,) = set(files(whole)) - {done.name}
    half = (tmp_path / "whole" / pending).read_bytes()[:1000]
    leftover = tmp_path / "cut" / pending.replace("safetensors", "4711.tmp")
    leftover.write_bytes(half)  # as a killed process leaves it
    before = done.stat().st_mtime_ns

    assert computed(tmp_path / "cut", encoder, images) == [1]
    cache = FeatureCache(tmp_path / "cut", encoder, images)
    assert done.stat().st_mtime_ns == before
    assert set(files(cache)) == {*files(whole), leftover.name}
    for index in range(3):
        torch.testing.assert_close(cache.read(index, 0), whole.read(index, 0))


def test_processes_build_a_cache_together(encoder, images, tmp_path, monkeypatch):
    """The second finds what the first has finished meanwhile, and begins elsewhere."""
    monkeypatch.setattr(feature_cache, "SHARD_SIZE", 1)
    begun = []

    def while_another_works(shards):
        for number in shards:
            begun.append(number)
            yield number
            if len(begun) == 1:
                FeatureCache(tmp_path, encoder, images)

    def count(*arguments):
        written.append(arguments[0])
        write(*arguments)

    written, write = [], feature_cache._write_shard
    monkeypatch.setattr(feature_cache, "_write_shard", count)
    cache = FeatureCache(tmp_path, encoder, images, progress=while_another_works, share=(1, 2))
    assert begun[0] == len(images) // 2 and sorted(begun) == list(range(len(images)))
    assert len(written) == len(set(written)) == len(images)
    torch.testing.assert_close(cache.read(0, 0), FeatureCache(tmp_path, encoder, images).read(0, 0))


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_computed_again_and_said_so(damage, encoder, images, tmp_path, caplog):
    whole = FeatureCache(tmp_path / "cache", encoder, images)
    (file,) = whole.folder.iterdir()
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-100], "empty": b"", "other": b"not a tensor in sight"}[damage])
    with caplog.at_level(logging.WARNING):
        cache = FeatureCache(tmp_path / "cache", encoder, images)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: damaged; encoding its images again"
    ]
    assert file.read_bytes() == content
    assert cache.read(0, 0)[0].shape == (16, 32)


@pytest.mark.parametrize("gone", [True, False], ids=["removed", "cut"])
def test_a_file_lost_after_the_start_is_one_clear_line(gone, encoder, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", encoder, images)
    (file,) = cache.folder.iterdir()
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"was removed or damaged during the run; start again") as caught:
        cache.read(0, 0)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_a_missing_image_is_named_before_anything_is_computed(encoder, images, tmp_path):
    missing = images[0].with_name("none.jpg")
    with pytest.raises(DataError) as caught:
        FeatureCache(tmp_path / "cache", encoder, [*images, missing])
    assert str(caught.value) == f"{missing}: no such image; check data.root and data.images"
    assert not list((tmp_path / "cache").iterdir())


def test_an_unreadable_image_is_named_when_asked_for_and_the_others_are_there(encoder, images, tmp_path):
    whole = FeatureCache(tmp_path / "whole", encoder, images)
    images[1].write_bytes(images[1].read_bytes()[:3000])
    for _ in ("made", "found"):
        cache = FeatureCache(tmp_path / "cache", encoder, images)
        with pytest.raises(ImageError, match="damaged or truncated") as caught:
            cache.read(1, 0)
        assert str(caught.value).startswith(f"{images[1]}: ")
        torch.testing.assert_close(cache.read(0, 0), whole.read(0, 0))
        torch.testing.assert_close(cache.read(2, 0), whole.read(2, 0))


def test_a_folder_that_cannot_be_made(encoder, images, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(DataError, match=r"cannot be created .*; change data\.cache"):
        FeatureCache(tmp_path / "cache", encoder, images)


def test_a_shard_that_cannot_be_written_leaves_nothing_behind(encoder, images, tmp_path):
    finished = FeatureCache(tmp_path / "other", encoder, images)
    (name,) = files(finished)
    (tmp_path / "cache" / name).mkdir(parents=True)  # stands in the way of the renaming
    with pytest.raises(DataError, match=r"cannot be written .*change data\.cache"):
        FeatureCache(tmp_path / "cache", encoder, images)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]


def test_other_processes_open_the_files_themselves(encoder, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", encoder, images)
    expected = cache.read(1, 0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(cache)).read(1, 0), expected)
    torch.testing.assert_close(cache.read(1, 0), expected)


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_view_1_is_the_mirror_of_view_0(fit, encoder, photos):
    preprocessing = dataclasses.replace(encoder.preprocessing, fit=fit)
    for photo in photos:
        plain, mirrored = (view_pixels(photo, view, preprocessing) for view in (0, 1))
        assert torch.equal(mirrored, plain.flip(-1))
        assert not torch.equal(mirrored, plain)


def test_views_are_a_function_of_image_view_and_seed(encoder, images):
    def view(number, seed=0):
        return view_pixels(images[0], number, encoder.preprocessing, seed)

    assert torch.equal(view(2), view(2))
    assert not torch.equal(view(2), view(3))
    assert not torch.equal(view(2), view(2, seed=1))
    assert torch.equal(view(0), view(0, seed=1)) and torch.equal(view(1), view(1, seed=1))
    same_crop = view_pixels(shutil.copy(images[0], images[0].with_name("b.jpg")), 2, encoder.preprocessing)
    assert not torch.equal(same_crop, view(2))
