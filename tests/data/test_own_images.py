import shutil
from pathlib import Path

import pytest

from ddcap.data.records import CaptionedImage, assign_split, load_records, take_share
from ddcap.errors import DataError


@pytest.fixture
def folder(photos, tmp_path):
    """Photographs, one in a subfolder, each with a text file; and an image and a text without a partner."""
    for number, photo in enumerate(photos[:4]):
        place = tmp_path / "images" / ("trip" if number == 3 else "")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, place)
        (place / photo.name).with_suffix(".txt").write_text(f"caption {number}\n\n  another one \n")
    shutil.copy(photos[4], tmp_path / "images")
    (tmp_path / "images" / "readme.txt").write_text("nothing to caption")
    return tmp_path / "images"


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "captions.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def message(*arguments):
    with pytest.raises(DataError) as caught:
        load_records(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_text_file_beside_each_image(folder, photos):
    records = load_records(folder, "not read")
    assert [record.path.name for record in records] == sorted(
        (photo.name for photo in photos[:4]), key=lambda name: (name == photos[3].name, name)
    )
    assert all(record.captions[1] == "another one" for record in records)
    assert all(record.path.is_file() for record in records)
    assert records[-1].image_id == f"trip/{photos[3].name}"
    splits = [load_records(folder, "", split) for split in ("train", "val")]
    assert sorted(r.image_id for split in splits for r in split) == sorted(r.image_id for r in records)


def test_rows_of_one_image_are_joined(write):
    path = write(
        'Image,Caption\na.jpg,"A dog, running"\nb.jpg,"two\nlines"\na.jpg,The same dog\n', "utf-8-sig"
    )
    records = load_records(path, "pictures")
    assert [(r.image_id, r.captions) for r in records] == [
        ("a.jpg", ("A dog, running", "The same dog")),
        ("b.jpg", ("two\nlines",)),
    ]
    assert str(records[0].path) == "pictures/a.jpg"


def test_a_split_column_is_used(write):
    path = write("filename,text,split\na.jpg,one,train\nb.jpg,two,test\n")
    assert [r.image_id for r in load_records(path, "", "test")] == ["b.jpg"]
    assert "no image in split 'val'" in message(path, "", "val")


def test_new_images_move_none_that_were_there():
    few = [f"{number}.jpg" for number in range(50)]
    many = [*few, *(f"new{number}.jpg" for number in range(500))]
    before, after = assign_split(few, 0.2), assign_split(many, 0.2)
    assert all(before[name] == after[name] for name in few)
    assert 60 < sum(split == "val" for split in after.values()) < 160


@pytest.mark.parametrize("share", [1e-6, 1 - 1e-6])
def test_both_splits_have_an_image(share):
    assert set(assign_split(["a", "b", "c"], share).values()) == {"train", "val"}
    assert assign_split(["a"], share) == {"a": "train"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("picture,words\na.jpg,x\n", "must name the columns image, caption and"),
        ("", "must name the columns"),
        ("image,caption\n", "has no rows"),
        ("image,caption\na.jpg,\n", "line 2 has no image or no caption"),
        ("image,caption\na.jpg\n", "line 2 has no image or no caption"),
        ("image,caption,split\na.jpg,x,dev\n", "line 2 has split 'dev'"),
        ("image,caption,split\na.jpg,x,val\na.jpg,y,train\n", "line 3 has split 'train'"),
    ],
)
def test_a_wrong_csv_is_one_line(write, text, reason):
    assert reason in message(write(text), "")


def test_other_mistakes_are_one_line(folder, write, tmp_path):
    (folder / "astronaut.txt").write_text(" \n")
    assert "astronaut.txt: is empty" in message(folder, "")
    (folder / "astronaut.txt").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in message(folder, "")
    (tmp_path / "empty").mkdir()
    assert "no image with a text file beside it" in message(tmp_path / "empty", "")
    assert "cannot be read" in message(tmp_path / "none.csv", "")
    assert "split 'dev' is unknown" in message(write("image,caption\na.jpg,x\n"), "", "dev")


def test_a_smaller_share_of_the_images_is_part_of_a_larger_one():
    records = [
        CaptionedImage(str(number), Path(f"{number}.jpg"), "train", ("a dog",)) for number in range(1000)
    ]
    tenth, third = ({record.image_id for record in take_share(records, share)} for share in (0.1, 0.3))
    assert tenth < third
    assert 70 < len(tenth) < 130 and 250 < len(third) < 350
    assert take_share(records[:3], 1e-9)[0] in records[:3]
