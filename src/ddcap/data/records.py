"""Captions in any layout to records: a Karpathy JSON, a CSV file, or a folder with text files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ddcap.data.karpathy import SPLITS, CaptionedImage, load_karpathy
from ddcap.data.own_pictures import load_csv, load_text_files
from ddcap.errors import DataError

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
            file lies beside each picture.
        image_folder: folder that picture names start from; not read for a folder of text files.
        split: "train", "val" or "test"; None for all.
        val_share: share of the pictures to validate on, where the layout names no split.
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
        raise DataError(f"{captions}: has no picture in split {split!r}; the others hold {len(records)}")
    return chosen
