"""What of a data set cannot be used, found before anyone waits an epoch for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddcap.data.images import load_image
from ddcap.data.karpathy import CaptionedImage
from ddcap.data.parallel import map_in_processes
from ddcap.data.picture_formats import EXTENSIONS
from ddcap.data.records import load_records
from ddcap.errors import ImageError

_PICTURES_AT_ONCE = 32


@dataclass(frozen=True)
class Problem:
    """One item that cannot be used.

    Attributes:
        kind: "missing" or "unreadable" picture, or an "entry" without captions, name or known split.
        item: the picture, or where the entry stands.
        reason: one line.
    """

    kind: Literal["missing", "unreadable", "entry"]
    item: str
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds and what of it cannot be used.

    Attributes:
        pictures: number of entries by split, those with a problem of their picture included.
        captions: number of captions by split.
        problems: entries first, then pictures in the order of the data set.
    """

    pictures: dict[str, int]
    captions: dict[str, int]
    problems: list[Problem]


def check_data(
    captions: str | Path,
    image_folder: str | Path,
    *,
    processes: int = 1,
    progress: Callable[[Iterable[str | None], int], Iterable[str | None]] = lambda items, _: items,
) -> CheckReport:
    """Read every entry and decode every picture.

    Args:
        captions: a Karpathy JSON, a CSV file, or a folder with a text file beside each picture.
        image_folder: folder that picture names start from; not read for a folder of text files.
        processes: pictures decoded side by side.
        progress: wraps the pictures' results; its second argument is their number.

    Raises:
        DataError: if nothing of the data set can be read.
    """
    records, problems = _read_entries(Path(captions), image_folder)
    paths = [record.path for record in records]
    reasons = map_in_processes(_why_unusable, paths, processes, at_once=_PICTURES_AT_ONCE)
    found = list(progress(reasons, len(paths)))
    for path, reason in zip(paths, found, strict=True):
        if reason is not None:
            problems.append(Problem("unreadable" if path.exists() else "missing", str(path), reason))
    count: Counter[str] = Counter()
    for record in records:
        count[record.split] += len(record.captions)
    return CheckReport(dict(Counter(record.split for record in records)), dict(count), problems)


def _read_entries(captions: Path, image_folder: str | Path) -> tuple[list[CaptionedImage], list[Problem]]:
    problems: list[Problem] = []

    def note(reason: str) -> None:
        item, _, why = reason.partition(": ")
        problems.append(Problem("entry", item, why))

    if captions.is_dir():
        pictures = (path for path in sorted(captions.rglob("*")) if path.suffix.lower() in EXTENSIONS)
        for path in pictures:
            if not path.with_suffix(".txt").is_file():
                note(f"{path}: has no caption; write one into {path.with_suffix('.txt').name}")
    return load_records(captions, image_folder, on_problem=note), problems


def _why_unusable(path: Path) -> str | None:
    """Why a picture cannot be used; None if it can."""
    try:
        load_image(path)
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")
    return None
