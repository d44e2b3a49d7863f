"""Captioned pictures without a Karpathy JSON: a text file beside each picture, or a CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

from ddcap.data.karpathy import SPLITS, CaptionedImage
from ddcap.data.picture_formats import EXTENSIONS
from ddcap.errors import DataError

IMAGE_COLUMNS = ("image", "filename", "file", "path")
CAPTION_COLUMNS = ("caption", "text")


Tell = Callable[[str], None]


def load_text_files(
    folder: str | Path, val_share: float, on_problem: Tell | None = None
) -> list[CaptionedImage]:
    """Every picture in `folder` (recursively) that has a text file of the same name: one caption a line.

    Args:
        folder: of the pictures.
        val_share: share of the pictures that becomes "val", see `assign_split`.
        on_problem: told of a text file that cannot be used, whose picture is then left out; without it that
            is an error.

    Raises:
        DataError: if there is no such picture, a text file is empty, or it is no text.
    """
    folder = Path(folder)
    captions: dict[str, list[str]] = {}
    for picture in sorted(folder.rglob("*")):
        text = picture.with_suffix(".txt")
        if picture.suffix.lower() not in EXTENSIONS or not text.is_file():
            continue
        try:
            lines = [line.strip() for line in _read(text).splitlines() if line.strip()]
            if not lines:
                raise DataError(f"{text}: is empty; write a caption into it, or remove it")
        except DataError as error:
            if on_problem is None:
                raise
            on_problem(str(error))
        else:
            captions[str(picture.relative_to(folder))] = lines
    if not captions:
        raise DataError(
            f"{folder}: has no picture with a text file beside it; dog.jpg needs a dog.txt with its caption"
        )
    return _records(folder, captions, {}, val_share)


def load_csv(
    path: str | Path, image_folder: str | Path, val_share: float, on_problem: Tell | None = None
) -> list[CaptionedImage]:
    """A CSV file with the columns image and caption, one caption a row; rows of one picture are joined.

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
        raise DataError(f"{path}: its first row should name the columns image and caption, and maybe split")
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for row in rows:
        try:
            image, caption, split = _read_row(row, image_column, caption_column, names.get("split"))
            if split is not None and splits.setdefault(image, split) != split:
                raise DataError(f"has split {split!r}; use the same in every row of a picture")
        except DataError as error:
            where = f"{path}: line {rows.line_num} {error}"
            if on_problem is None:
                raise DataError(where) from None
            on_problem(where)
        else:
            captions.setdefault(image, []).append(caption)
    if not captions:
        raise DataError(f"{path}: has no rows; add one for each caption")
    return _records(Path(image_folder), captions, splits, val_share)


def _read_row(
    row: dict[str, str], image_column: str, caption_column: str, split_column: str | None
) -> tuple[str, str, str | None]:
    """Image, caption and split of a row."""
    image, caption = (row[image_column] or "").strip(), (row[caption_column] or "").strip()
    if not image or not caption:
        raise DataError("has no image or no caption; fill it or remove it")
    if split_column is None:
        return image, caption, None
    split = (row[split_column] or "").strip()
    if split not in SPLITS:
        raise DataError(f"has split {split!r}; use train, val or test, the same in every row of a picture")
    return image, caption, split


def assign_split(names: list[str], val_share: float) -> dict[str, str]:
    """Picture to "train" or "val", by a digest of its name: adding pictures moves none that were there.

    At least one picture becomes "val" if there are two or more.
    """
    places = {name: int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8 for name in names}
    splits = {name: "val" if place < val_share else "train" for name, place in places.items()}
    if len(names) > 1 and "val" not in splits.values():
        splits[min(places, key=lambda name: places[name])] = "val"
    if "train" not in splits.values():
        splits[max(places, key=lambda name: places[name])] = "train"
    return splits


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
