"""Karpathy-layout JSON (COCO, Flickr8k, Flickr30k) to records. No torch, no pictures opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddcap.data.coco import SPLIT_URL, find_in_2017_folders
from ddcap.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CaptionedImage:
    """One picture and what people wrote about it.

    Attributes:
        image_id: `cocoid`, else `imgid`, else the file name; unique in the data set.
        path: where the picture should be (not checked here).
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

    COCO's "restval" pictures join "train", as in the literature; its pictures may also lie in the folders of
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
        raise DataError(f"{json_path}: has no picture {where}; check its entries and their 'split'")
    ids = {record.image_id for record in records}
    if len(ids) != len(records):
        raise DataError(
            f"{json_path}: image ids are not unique; give every entry its own cocoid, imgid or filename"
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
        raise DataError(f"{json_path}: not valid JSON ({error}); is the file complete?") from None
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{json_path}: has no list 'images'; give a Karpathy-layout JSON")
    return entries


def _record(json_path: Path, image_folder: Path, number: int, entry: Any) -> CaptionedImage:
    where = f"{json_path}: images[{number}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
        raise DataError(f"{where} has no 'filename'; every entry needs one")
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
