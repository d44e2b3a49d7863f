import json

import pytest

from ddcap.data.records import check_folders, load_karpathy
from ddcap.errors import DataError

PLACES = [("train2014", "COCO_train2014_000000000009.jpg"), ("val2014", "COCO_val2014_000000000042.jpg")]


@pytest.fixture
def dataset(tmp_path):
    images = [
        {"filepath": folder, "filename": name, "cocoid": number, "split": split, "sentences": [{"raw": "a"}]}
        for number, ((folder, name), split) in enumerate(zip(PLACES, ("train", "restval"), strict=True))
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    return path


def put(root, *places):
    for place in places:
        path = root / place
        path.parent.mkdir(exist_ok=True)
        path.touch()


def found(dataset, root):
    return [str(record.path.relative_to(root)) for record in load_karpathy(dataset, root, "train")]


def test_the_2014_folders_are_used_where_they_are(dataset, tmp_path):
    put(tmp_path, "train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg")
    put(tmp_path, "train2017/000000000009.jpg", "train2017/000000000042.jpg")
    assert found(dataset, tmp_path) == ["/".join(place) for place in PLACES]
    check_folders(record.path for record in load_karpathy(dataset, tmp_path))


def test_the_2017_folders_hold_the_same_images(dataset, tmp_path):
    put(tmp_path, "val2017/000000000009.jpg", "train2017/000000000042.jpg")
    assert found(dataset, tmp_path) == ["val2017/000000000009.jpg", "train2017/000000000042.jpg"]


def test_an_image_missing_from_the_2017_folders_keeps_its_name(dataset, tmp_path):
    put(tmp_path, "train2017/000000000042.jpg")
    assert found(dataset, tmp_path) == ["/".join(PLACES[0]), "train2017/000000000042.jpg"]


def test_a_missing_folder_is_named_with_its_download(dataset, tmp_path):
    records = load_karpathy(dataset, tmp_path)
    with pytest.raises(DataError, match=r"train2014: no such folder; download http.*train2014\.zip"):
        check_folders(record.path for record in records)
    with pytest.raises(DataError, match=r"my/pictures: no such image folder"):
        check_folders([tmp_path / "my" / "pictures" / "a.jpg"])
    with pytest.raises(DataError, match=r"no such file.*caption_datasets\.zip"):
        load_karpathy(tmp_path / "none.json", tmp_path)
