import json

import pytest

from ddcap.data.records import load_karpathy
from ddcap.errors import DataError


def entry(name="a.jpg", split="train", captions=("A dog .",), **more):
    return {"filename": name, "split": split, "sentences": [{"raw": text} for text in captions], **more}


@pytest.fixture
def write(tmp_path):
    def write(*entries):
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps({"images": list(entries)}))
        return path

    return write


def message(path, split=None):
    with pytest.raises(DataError) as caught:
        load_karpathy(path, "images", split)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path)) or split not in (None, "train", "val", "test")
    return text


def test_the_records_of_the_photos(captions_json, photos):
    records = load_karpathy(captions_json, photos[0].parent)
    assert [record.path for record in records] == photos
    assert [record.split for record in records[-3:]] == ["train", "val", "test"]
    assert [len(record.captions) for record in records[:3]] == [3, 5, 5]
    assert records[0].captions[1] == "A cat is there ."


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_is_a_part_of_all_in_file_order(split, captions_json, photos):
    everything = load_karpathy(captions_json, photos[0].parent)
    chosen = load_karpathy(captions_json, photos[0].parent, split)
    assert chosen == [record for record in everything if record.split == split]
    assert 0 < len(chosen) < len(everything)


def test_restval_joins_train(write):
    path = write(entry("a.jpg", "restval"), entry("b.jpg", "val"), entry("c.jpg", "train"))
    assert [record.path.name for record in load_karpathy(path, "images", "train")] == ["a.jpg", "c.jpg"]


def test_filepath_is_below_the_image_folder(write, tmp_path):
    path = write(
        entry("a.jpg", filepath="val2014"), entry("b.jpg", filepath=""), entry("c.jpg", filepath=None)
    )
    paths = [record.path for record in load_karpathy(path, tmp_path)]
    assert paths == [tmp_path / "val2014" / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"]


def test_image_ids_prefer_cocoid_then_imgid_then_the_name(write):
    path = write(
        entry("a.jpg", cocoid=0, imgid=1),
        entry("b.jpg", imgid=5),
        entry("c.jpg"),
        entry("d.jpg", cocoid=None, imgid=None),
    )
    assert [record.image_id for record in load_karpathy(path, "images")] == ["0", "5", "c.jpg", "d.jpg"]


def test_captions_are_stripped_and_empty_ones_left_out(write):
    texts = entry(captions=["  A dog runs . \n", "   ", "Café"])
    texts["sentences"] += [{"tokens": ["a"]}, "just text", {"raw": 3}]
    assert load_karpathy(write(texts), "images")[0].captions == ("A dog runs .", "Café")


def test_equal_ids_are_an_error_in_one_split_only(write):
    path = write(entry("a.jpg", imgid=1), entry("b.jpg", imgid=1), entry("c.jpg", "val", imgid=1))
    assert "not unique" in message(path, "train")
    assert len(load_karpathy(path, "images", "val")) == 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"split": "train"}, "images[1] has no 'filename'"),
        ("a.jpg", "images[1] has no 'filename'"),
        (entry(captions=[]), "images[1] (a.jpg) has no 'sentences'"),
        ({"filename": "a.jpg", "split": "train"}, "images[1] (a.jpg) has no 'sentences'"),
        (entry(captions=["  "]), "images[1] (a.jpg) has no 'sentences' with a text"),
        (entry(split="dev"), "images[1] (a.jpg) has split 'dev'"),
        (entry(split=None), "images[1] (a.jpg) has split None"),
        (entry(split=["train"]), "images[1] (a.jpg) has split ['train']"),
        (entry(filepath=3), "images[1] (a.jpg) has filepath 3"),
    ],
)
def test_a_broken_entry_is_named_by_its_number(broken, reason, write):
    assert reason in message(write(entry("z.jpg"), broken))


def test_empty_and_unknown_splits(write):
    path = write(entry())
    assert "no image in split 'val'" in message(path, "val")
    assert "no image at all" in message(write())
    assert message(path, "valid") == "split 'valid' is unknown; use one of train, val, test"


def test_other_json_files_are_refused(tmp_path, photos):
    assert "no such file" in message(tmp_path / "none.json")
    assert "cannot be read (Is a directory)" in message(tmp_path)
    assert "not valid JSON" in message(photos[0])
    for content, reason in [
        ('{"images": [{"filename": "a', "check that the file is complete"),
        ("", "not valid JSON"),
        ("[]", "no 'images' list"),
        ('{"images": {}}', "no 'images' list"),
    ]:
        path = tmp_path / "dataset.json"
        path.write_text(content)
        assert reason in message(path)
