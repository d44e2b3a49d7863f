import logging
import os
import random
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ddcap.data.images import (
    LARGEST_AREA,
    LONGEST_STRIP,
    SMALLEST_SIDE,
    Preprocessing,
    find_images,
    load_image,
)
from ddcap.errors import ImageError


def message(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warnings would stand on the terminal beside the error
        with pytest.raises(ImageError) as caught:
            load_image(source)
    text = str(caught.value)
    assert "\n" not in text
    assert ": " in text and "; " in text  # file: reason; remedy
    return text


def array(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png(width, height, data=b""):
    """A PNG file whose header says `width` x `height`, whatever `data` holds."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


# --- what can be read


def test_photos_load_as_rgb(photos):
    for path in photos:
        image = load_image(path)
        with Image.open(path) as opened:
            assert np.array_equal(array(image), array(opened.convert("RGB")))


def test_a_string_a_path_and_a_pil_image_are_the_same(chelsea):
    images = [load_image(chelsea), load_image(str(chelsea)), load_image(Image.open(chelsea))]
    assert len({image.tobytes() for image in images}) == 1


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("P", 7, (14, 3, 200)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 127), (255, 128, 128)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32768, (128, 128, 128)),
        ("I;16", 300, (1, 1, 1)),
        ("I", 32768, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, rgb):
    image = Image.new(mode, (20, 30), colour)
    if mode == "P":
        image.putpalette([0, 0, 0] * 7 + [14, 3, 200])
    read = load_image(image)
    assert read.size == (20, 30)
    assert (array(read) == np.array(rgb)).all()


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert np.abs(array(load_image(tmp_path / "a.jpg")) - np.array([255, 0, 0])).max() < 6


def test_a_palette_png_with_a_transparent_colour_stands_on_white(tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 50, 60, 70])
    image.paste(0, (0, 0, 10, 20))
    image.save(tmp_path / "a.png", transparency=0)
    pixels = array(load_image(tmp_path / "a.png"))
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:] == [50, 60, 70]).all()


def test_a_16_bit_png_is_scaled_and_not_clipped(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = array(load_image(tmp_path / "a.png"))[0, :, 0]
    assert np.abs(pixels - np.linspace(0, 255, 64)).max() <= 1
    assert len(set(pixels)) == 64


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, chelsea, tmp_path):
    upright = Image.open(chelsea).resize((60, 40))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(array(load_image(tmp_path / "a.png")), array(upright))


def gif(path, *colours):
    frames = [Image.new("RGB", (20, 20), colour) for colour in colours]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    return path


def test_an_animated_gif_gives_its_first_frame_and_one_warning(tmp_path, caplog):
    path = gif(tmp_path / "a.gif", "red", "green", "blue")
    with caplog.at_level(logging.WARNING):
        pixels = array(load_image(path))
    assert (pixels == [255, 0, 0]).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: has 3 frames or pages; captioning the first one"
    ]


def test_a_still_gif_and_an_open_animation_get_no_warning(tmp_path, caplog):
    load_image(gif(tmp_path / "a.gif", "red"))
    opened = Image.open(gif(tmp_path / "b.gif", "red", "blue"))
    opened.seek(1)
    assert (array(load_image(opened)) == [0, 0, 255]).all()
    assert opened.tell() == 1
    assert not caplog.records


def test_a_phone_jpeg_with_a_hidden_second_image_gets_no_warning(chelsea, tmp_path, caplog):
    image = Image.open(chelsea)
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image.rotate(180)])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert np.abs(array(load_image(tmp_path / "a.jpg")) - array(image)).mean() < 3
    assert not caplog.records


# --- what cannot


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    assert message(tmp_path / "none.jpg") == f"{tmp_path / 'none.jpg'}: no such file; check the path"
    assert message(tmp_path).startswith(f"{tmp_path}: is a folder")
    assert "cannot be read (" in message(tmp_path / ("x" * 300))
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "no such file" in message(tmp_path / "link.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(chelsea, tmp_path):
    path = shutil.copy(chelsea, tmp_path / "a.jpg")
    path.chmod(0)
    assert message(path) == f"{path}: no permission to read it; change its permissions"


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert message(tmp_path / "a.jpg").startswith(f"{tmp_path / 'a.jpg'}: the file is empty (0 bytes)")


def test_text_named_like_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404 not found</html>" * 100)
    assert "a.jpg: its format is HTML, whatever its extension, and ddcap cannot read it" in message(
        tmp_path / "a.jpg"
    )
    (tmp_path / "a.jpg").write_text("not found " * 100)
    assert "a.jpg: not an image in a supported format" in message(tmp_path / "a.jpg")


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_truncated_file_is_named(form, chelsea, tmp_path):
    path = tmp_path / f"a.{form}"
    Image.open(chelsea).save(path)
    whole = path.read_bytes()
    for part in (0.9, 0.5, 0.1):
        path.write_bytes(whole[: int(part * len(whole))])
        assert f"a.{form}: damaged or truncated (" in message(path)
    path.write_bytes(whole[:5])
    assert f"a.{form}: " in message(path)


@pytest.mark.parametrize("form", ["jpg", "png", "gif", "webp"])
def test_random_damage_is_read_or_one_clear_line(form, chelsea, tmp_path):
    generator = random.Random(0)
    path = tmp_path / f"a.{form}"
    small = Image.open(chelsea).resize((40, 30))
    small.save(path, **({"save_all": True, "append_images": [small.rotate(90)]} if form == "gif" else {}))
    whole = path.read_bytes()
    failures = 0
    for _ in range(60):
        damaged = bytearray(whole[: generator.choice([len(whole), generator.randrange(1, len(whole))])])
        for _ in range(8):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).mode == "RGB"
        except ImageError as error:
            failures += 1
            assert "\n" not in str(error) and str(error).startswith(f"{path}: ")
    assert failures


def test_an_open_image_cut_short_is_an_image_error_too(chelsea, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(chelsea.read_bytes()[:9000])
    assert message(Image.open(path)).startswith(f"{path}: damaged or truncated")


@pytest.mark.parametrize("size", [(1, 1), (SMALLEST_SIDE - 1, 500), (500, SMALLEST_SIDE - 1)])
def test_images_that_are_too_small_are_refused(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "a.png")
    text = message(tmp_path / "a.png")
    assert f"a.png: {size[0]}x{size[1]} pixels is too small" in text
    assert message(Image.new("RGB", size)) == text.replace(str(tmp_path / "a.png"), "image")


def test_the_smallest_and_the_longest_image_pass():
    load_image(Image.new("RGB", (SMALLEST_SIDE, SMALLEST_SIDE)))
    longest = Image.new("RGB", (LONGEST_STRIP * SMALLEST_SIDE, SMALLEST_SIDE))
    for fit in ("squash", "crop"):
        assert Preprocessing(64, fit, (0, 0, 0), (1, 1, 1))(load_image(longest)).shape == (3, 64, 64)
    assert "too narrow" in message(Image.new("L", (LONGEST_STRIP * 16 + 1, 16)))
    assert "too narrow" in message(Image.new("L", (16, LONGEST_STRIP * 16 + 1)))


@pytest.mark.parametrize("size", [(60_000, 60_000), (13_400, 13_300), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(size, tmp_path):
    assert size[0] * size[1] > LARGEST_AREA
    path = tmp_path / "a.png"
    path.write_bytes(png(*size))
    assert message(path) == (
        f"{path}: over 178 million pixels, refused as a possible decompression bomb; shrink it"
    )


def test_a_large_header_without_the_pixels_is_damage_and_no_warning(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(9_500, 9_500))  # Pillow warns from 89 million pixels on
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path)
    assert "damaged or truncated" in message(path)


def test_loading_leaves_the_warning_filters_alone(chelsea):
    before = list(warnings.filters)
    load_image(chelsea)
    assert warnings.filters == before


# --- folders


def test_find_images_walks_folders_and_keeps_files(chelsea, tmp_path):
    for name in ("b/2.PNG", "b/c/1.jpeg", "a.jpg", "notes.txt", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.jpg").mkdir()
    found = find_images([tmp_path, chelsea, "none.jpg"])
    assert found[:3] == [tmp_path / "a.jpg", tmp_path / "b/2.PNG", tmp_path / "b/c/1.jpeg"]
    assert [str(path) for path in found[3:]] == [str(chelsea), "none.jpg"]


def test_find_images_of_the_photos(photos):
    assert find_images([photos[0].parent]) == photos


def test_find_images_in_a_folder_without_any(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match="the folder contains no image") as caught:
        find_images([str(tmp_path)])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
