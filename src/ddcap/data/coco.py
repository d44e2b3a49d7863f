"""Where COCO's pictures lie, and what to say when they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ddcap.errors import DataError

SPLIT_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
PICTURES_URL = "http://images.cocodataset.org/zips/{folder}.zip"
_FOLDERS_2014 = ("train2014", "val2014")
_FOLDERS_2017 = ("train2017", "val2017")


def find_in_2017_folders(paths: Sequence[Path], image_folder: Path) -> list[Path]:
    """The paths, but into train2017/ and val2017/ where those are there and the 2014 folders are not.

    Both editions hold the same pictures, shared out differently: `val2014/COCO_val2014_000000000042.jpg` is
    `train2017/000000000042.jpg` or `val2017/000000000042.jpg`.
    """
    wanted = [image_folder / name for name in _FOLDERS_2014]
    missing = {folder for folder in wanted if not folder.is_dir()}
    there = [image_folder / name for name in _FOLDERS_2017 if (image_folder / name).is_dir()]
    if not there or not any(path.parent in missing for path in paths):
        return list(paths)
    place_of = {path.name: path for folder in there for path in folder.iterdir()}
    moved = []
    for path in paths:
        name = path.name.rpartition("_")[2]
        moved.append(place_of.get(name, path) if path.parent in missing else path)
    return moved


def check_folders(paths: Iterable[Path]) -> None:
    """Look whether the pictures' folders are there, which is quick even for millions of pictures.

    Raises:
        DataError: if one is not; for COCO's it says where to get it.
    """
    for folder in sorted({path.parent for path in paths}):
        if folder.is_dir():
            continue
        if folder.name in _FOLDERS_2014:
            url = PICTURES_URL.format(folder=folder.name)
            raise DataError(f"{folder}: no such folder; download {url} and unpack it into {folder.parent}")
        raise DataError(f"{folder}: no such folder of pictures; check data.root and data.images")
