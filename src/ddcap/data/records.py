"""Lists of images and captions: Karpathy's JSON, COCO's files, tables, folders, text alone."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddcap.data.images import EXTENSIONS
from ddcap.errors import DataError

# Karpathy-layout JSON (COCO, Flickr8k, Flickr30k) to records. No torch, no images opened.

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CaptionedImage:
    """One image and what people wrote about it.

    Attributes:
        image_id: `cocoid`, else `imgid`, else the file name; unique in the data set.
        path: where the image should be (not checked here).
        split: "train", "val" or "test".
        captions: the human captions, as written.
    """

    image_id: str
    path: Path
    split: str
    captions: tuple[str, ...]


def load_karpathy(
    json_path: str | Path,
    image_folder: str | Path,
    split: str | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> list[CaptionedImage]:
    """Read the records of one split, or of all, in file order.

    COCO's "restval" images join "train", as in the literature; its images may also lie in the folders of
    the 2017 edition (`coco.py`).

    Args:
        json_path: `{"images": [{filename, filepath?, split, sentences: [{raw}], cocoid?, imgid?}]}`.
        image_folder: folder that `filepath`/`filename` start from.
        split: "train", "val" or "test"; None for all.
        on_problem: told of an entry that cannot be used, which is then left out; without it that is an error.

    Raises:
        DataError: if the file is missing, is no such JSON, an entry lacks sentences, or the split is empty.
    """
    json_path, image_folder = Path(json_path), Path(image_folder)
    if split is not None and split not in SPLITS:
        raise DataError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    entries = _read_entries(json_path)
    records = []
    for number, entry in enumerate(entries):
        try:
            records.append(_record(json_path, image_folder, number, entry))
        except DataError as error:
            if on_problem is None:
                raise
            on_problem(str(error))
    places = find_in_2017_folders([record.path for record in records], image_folder)
    records = [replace(record, path=place) for record, place in zip(records, places, strict=True)]
    if split is not None:
        records = [record for record in records if record.split == split]
    if not records:
        where = f"in split {split!r}" if split else "at all"
        raise DataError(f"{json_path}: has no image {where}; check its entries and their 'split'")
    ids = {record.image_id for record in records}
    if len(ids) != len(records):
        raise DataError(
            f"{json_path}: image ids are not unique; give each entry its own cocoid, imgid or filename"
        )
    return records


def _read_entries(json_path: Path) -> list[Any]:
    try:
        content = json.loads(json_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        where = f" (COCO's, Flickr8k's and Flickr30k's: {SPLIT_URL})"
        raise DataError(f"{json_path}: no such file; give a Karpathy-layout JSON{where}") from None
    except OSError as error:
        raise DataError(
            f"{json_path}: cannot be read ({error.strerror}); give a Karpathy-layout JSON"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{json_path}: not valid JSON ({error}); check that the file is complete") from None
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{json_path}: has no 'images' list; give a Karpathy-layout JSON")
    return entries


def _record(json_path: Path, image_folder: Path, number: int, entry: Any) -> CaptionedImage:
    where = f"{json_path}: images[{number}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
        raise DataError(f"{where} has no 'filename'; add it")
    name = entry["filename"]
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise DataError(f"{where} ({name}) has no 'sentences'; add its captions or remove the entry")
    captions = tuple(
        sentence["raw"].strip()
        for sentence in sentences
        if isinstance(sentence, dict) and isinstance(sentence.get("raw"), str) and sentence["raw"].strip()
    )
    if not captions:
        raise DataError(f"{where} ({name}) has no 'sentences' with a text under 'raw'; add its captions")
    split = "train" if entry.get("split") == "restval" else entry.get("split")
    if split not in SPLITS:
        raise DataError(f"{where} ({name}) has split {split!r}; use train, restval, val or test")
    folder = entry.get("filepath") or ""
    if not isinstance(folder, str):
        raise DataError(
            f"{where} ({name}) has filepath {folder!r}; give a folder relative to the image folder"
        )
    given_ids = [entry[key] for key in ("cocoid", "imgid") if entry.get(key) is not None]
    return CaptionedImage(str([*given_ids, name][0]), image_folder / folder / name, split, captions)


# Where COCO's images lie, and what to say when they do not.

SPLIT_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
IMAGES_URL = "http://images.cocodataset.org/zips/{folder}.zip"
_FOLDERS_2014 = ("train2014", "val2014")
_FOLDERS_2017 = ("train2017", "val2017")


def find_in_2017_folders(paths: Sequence[Path], image_folder: Path) -> list[Path]:
    """The paths, but into train2017/ and val2017/ where those are there and the 2014 folders are not.

    Both editions hold the same images, shared out differently: `val2014/COCO_val2014_000000000042.jpg` is
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
    """Look whether the images' folders are there, which is quick even for millions of images.

    Raises:
        DataError: if one is not; for COCO's it says where to get it.
    """
    for folder in sorted({path.parent for path in paths}):
        if folder.is_dir():
            continue
        if folder.name in _FOLDERS_2014:
            url = IMAGES_URL.format(folder=folder.name)
            raise DataError(f"{folder}: no such folder; download {url} and unpack it into {folder.parent}")
        raise DataError(f"{folder}: no such image folder; check data.root and data.images")


# Captioned images without a Karpathy JSON: a text file beside each image, or a CSV file.

IMAGE_COLUMNS = ("image", "filename", "file", "path")
CAPTION_COLUMNS = ("caption", "text")


Tell = Callable[[str], None]


def load_text_files(
    folder: str | Path, val_share: float, on_problem: Tell | None = None
) -> list[CaptionedImage]:
    """Every image in `folder` (recursively) that has a text file of the same name: one caption a line.

    Args:
        folder: of the images.
        val_share: share of the images that becomes "val", see `assign_split`.
        on_problem: told of a text file that cannot be used, whose image is then left out; without it that
            is an error.

    Raises:
        DataError: if there is no such image, a text file is empty, or it is no text.
    """
    folder = Path(folder)
    captions: dict[str, list[str]] = {}
    for image in sorted(folder.rglob("*")):
        text = image.with_suffix(".txt")
        if image.suffix.lower() not in EXTENSIONS or not text.is_file():
            continue
        try:
            lines = [line.strip() for line in _read(text).splitlines() if line.strip()]
            if not lines:
                raise DataError(f"{text}: is empty; write a caption into it, or delete it")
        except DataError as error:
            if on_problem is None:
                raise
            on_problem(str(error))
        else:
            captions[str(image.relative_to(folder))] = lines
    if not captions:
        raise DataError(
            f"{folder}: has no image with a text file beside it; dog.jpg needs dog.txt with its caption"
        )
    return _records(folder, captions, {}, val_share)


def load_csv(
    path: str | Path, image_folder: str | Path, val_share: float, on_problem: Tell | None = None
) -> list[CaptionedImage]:
    """A CSV file with the columns image and caption, one caption a row; rows of one image are joined.

    A column "split" (train, val, test) is used where it is there.

    Args:
        path: the file; its first row names the columns.
        image_folder: what the image names are relative to.
        val_share: see `assign_split`.
        on_problem: told of a row that cannot be used, which is then left out; without it that is an error.

    Raises:
        DataError: if a column is missing, a row has no image, caption or known split, or there is no row.
    """
    path = Path(path)
    rows = csv.DictReader(io.StringIO(_read(path), newline=""))
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or []}
    image_column = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
    caption_column = next((names[name] for name in CAPTION_COLUMNS if name in names), None)
    if image_column is None or caption_column is None:
        raise DataError(
            f"{path}: its first row must name the columns image, caption and, optionally, split; add it"
        )
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for row in rows:
        try:
            image, caption, split = _read_row(row, image_column, caption_column, names.get("split"))
            if split is not None and splits.setdefault(image, split) != split:
                raise DataError(f"has split {split!r}; use one split in all rows of an image")
        except DataError as error:
            where = f"{path}: line {rows.line_num} {error}"
            if on_problem is None:
                raise DataError(where) from None
            on_problem(where)
        else:
            captions.setdefault(image, []).append(caption)
    if not captions:
        raise DataError(f"{path}: has no rows; add one per caption")
    return _records(Path(image_folder), captions, splits, val_share)


def _read_row(
    row: dict[str, str], image_column: str, caption_column: str, split_column: str | None
) -> tuple[str, str, str | None]:
    """Image, caption and split of a row."""
    image, caption = (row[image_column] or "").strip(), (row[caption_column] or "").strip()
    if not image or not caption:
        raise DataError("has no image or no caption; fill it in, or delete the row")
    if split_column is None:
        return image, caption, None
    split = (row[split_column] or "").strip()
    if split not in SPLITS:
        raise DataError(f"has split {split!r}; use train, val or test, one split in all rows of an image")
    return image, caption, split


def assign_split(names: list[str], val_share: float) -> dict[str, str]:
    """Image to "train" or "val", by a digest of its name: adding images moves none that were there.

    At least one image becomes "val" if there are two or more.
    """
    places = {name: _place(name) for name in names}
    splits = {name: "val" if place < val_share else "train" for name, place in places.items()}
    if len(names) > 1 and "val" not in splits.values():
        splits[min(places, key=lambda name: places[name])] = "val"
    if "train" not in splits.values():
        splits[max(places, key=lambda name: places[name])] = "train"
    return splits


def take_share(records: Sequence[CaptionedImage], share: float) -> list[CaptionedImage]:
    """The records of about that share of the images, by a digest of their names; at least one.

    A smaller share is part of a larger one.
    """
    places = [_place(record.path.name) for record in records]
    kept = [record for record, place in zip(records, places, strict=True) if place < share]
    return kept or [records[places.index(min(places))]]


def fold_of(record: CaptionedImage, folds: int) -> int:
    """Fold of an image, from 0 to `folds` - 1, by a digest of its name: other images do not change it."""
    return int(_place(record.path.name) * folds)


def _place(name: str) -> float:
    """A number in [0, 1) that a name always has."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8


def _records(
    folder: Path, captions: dict[str, list[str]], splits: dict[str, str], val_share: float
) -> list[CaptionedImage]:
    splits = splits or assign_split(list(captions), val_share)
    return [
        CaptionedImage(name, folder / name, splits[name], tuple(texts)) for name, texts in captions.items()
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


# Captions in any layout to records: a Karpathy JSON, a CSV file, or a folder with text files.

VAL_SHARE = 0.1


def load_records(
    captions: str | Path,
    image_folder: str | Path,
    split: str | None = None,
    val_share: float = VAL_SHARE,
    on_problem: Callable[[str], None] | None = None,
) -> list[CaptionedImage]:
    """The records of one split, or of all.

    Args:
        captions: a Karpathy JSON, a CSV file with the columns image and caption, or a folder in which a text
            file lies beside each image.
        image_folder: folder that image names start from; not read for a folder of text files.
        split: "train", "val" or "test"; None for all.
        val_share: share of the images to validate on, where the layout names no split.
        on_problem: told of an entry that cannot be used, which is then left out; without it that is an error.

    Raises:
        DataError: if the captions cannot be used, or the split is empty.
    """
    captions = Path(captions)
    if captions.suffix.lower() != ".csv" and not captions.is_dir():
        return load_karpathy(captions, image_folder, split, on_problem)
    if split is not None and split not in SPLITS:
        raise DataError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if captions.is_dir():
        records = load_text_files(captions, val_share, on_problem)
    else:
        records = load_csv(captions, image_folder, val_share, on_problem)
    chosen = [record for record in records if split in (None, record.split)]
    if not chosen:
        raise DataError(
            f"{captions}: has no image in split {split!r}, and {len(records)} in others; choose another split"
        )
    return chosen


# Captions without images, to learn the language of captions from.


def load_texts(path: str | Path) -> list[CaptionedImage]:
    """Captions of a file, one record for each, in its order; their image is nowhere.

    Args:
        path: `.txt` with a caption a line, or `.json` with captions in lists, in whatever nesting; `.gz`
            behind it is unpacked.

    Raises:
        DataError: if the file is missing, is neither, or holds no caption.
    """
    path = Path(path)
    captions = (caption for group in _groups(_read_text(path)) for caption in group)
    return [_text_record(path, number, (caption,)) for number, caption in enumerate(captions)]


def load_text_groups(path: str | Path) -> list[CaptionedImage]:
    """The same with captions that stand in one list of a JSON together: they are of one image.

    Raises:
        DataError: as `load_texts`.
    """
    path = Path(path)
    return [
        _text_record(path, number, tuple(group)) for number, group in enumerate(_groups(_read_text(path)))
    ]


def _text_record(path: Path, number: int, captions: tuple[str, ...]) -> CaptionedImage:
    return CaptionedImage(f"{path.name}:{number}", path, "train", captions)


def _read_text(path: Path) -> Any:
    """Read a JSON, or a text file into a list with a list for each line."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        is_json = ".json" in path.suffixes[-2:]
        found = json.loads(text) if is_json else [[line] for line in text.splitlines()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; set data.text to a file of captions without images") from None
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: cannot be read ({reason}); give a .txt with one caption per line, or a .json of "
            "captions"
        ) from None
    if not any(_groups(found)):
        raise DataError(
            f"{path}: contains no caption; give a .txt with one caption per line, or a .json of captions"
        )
    return found


def _groups(value: Any) -> Iterator[list[str]]:
    """The strings that stand in one list or dictionary of nested ones, without blank ones and keys."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict | list):
        inside = list(value.values() if isinstance(value, dict) else value)
        captions = [text.strip() for text in inside if isinstance(text, str) and text.strip()]
        if captions:
            yield captions
        for inner in inside:
            if isinstance(inner, dict | list):
                yield from _groups(inner)
