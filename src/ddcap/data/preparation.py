"""Before a training: what of a data set cannot be used, and captioned images as webdataset shards."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image

from ddcap.data.images import EXTENSIONS, load_image
from ddcap.data.records import CaptionedImage, load_records
from ddcap.data.shard_files import write_manifest, write_shard
from ddcap.errors import DataError, ImageError
from ddcap.files import remove_unfinished, write_text

# Work on many files, spread over processes.

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_processes(
    function: Callable[[_Item], _Result], items: Sequence[_Item], processes: int, *, at_once: int = 1
) -> Iterator[_Result]:
    """`function` of every item, in order; with one process, in this one.

    Args:
        function: of a module, so that other processes find it.
        items: what can be sent to another process.
        processes: how many work side by side.
        at_once: items sent to a process together.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    # not forked: torch's threads do not survive that
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=at_once)


# What of a data set cannot be used, found before anyone waits an epoch for it.

_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Problem:
    """One item that cannot be used.

    Attributes:
        kind: "missing" or "unreadable" image, or an "entry" without captions, name or known split.
        item: the image, or where the entry stands.
        reason: one line.
    """

    kind: Literal["missing", "unreadable", "entry"]
    item: str
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """The contents of a data set, and what of it cannot be used.

    Attributes:
        images: number of entries by split, those with a problem of their image included.
        captions: number of captions by split.
        problems: entries first, then images in the order of the data set.
    """

    images: dict[str, int]
    captions: dict[str, int]
    problems: list[Problem]


def check_data(
    captions: str | Path,
    image_folder: str | Path,
    *,
    processes: int = 1,
    progress: Callable[[Iterable[str | None], int], Iterable[str | None]] = lambda items, _: items,
) -> CheckReport:
    """Read every entry and decode every image.

    Args:
        captions: a Karpathy JSON, a CSV file, or a folder with a text file beside each image.
        image_folder: folder that image names start from; not read for a folder of text files.
        processes: images decoded side by side.
        progress: wraps the images' results; its second argument is their number.

    Raises:
        DataError: if nothing of the data set can be read.
    """
    records, problems = _read_entries(Path(captions), image_folder)
    paths = [record.path for record in records]
    reasons = map_in_processes(_why_unusable, paths, processes, at_once=_IMAGES_AT_ONCE)
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
        images = (path for path in sorted(captions.rglob("*")) if path.suffix.lower() in EXTENSIONS)
        for path in images:
            if not path.with_suffix(".txt").is_file():
                note(f"{path}: has no caption; write one into {path.with_suffix('.txt').name}")
    return load_records(captions, image_folder, on_problem=note), problems


def _why_unusable(path: Path) -> str | None:
    """Say why an image cannot be used; None if it can."""
    try:
        load_image(path)
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


# Captioned images to webdataset shards: in parallel, restartable, without what cannot be read.

_QUALITY = 95  # of re-encoded JPEG files: invisible at the sizes a model sees


@dataclass(frozen=True)
class ShardingResult:
    """The result of sharding a data set.

    Attributes:
        shards: files there are now.
        samples: images in them.
        unreadable: why others are not, a line each.
    """

    shards: int
    samples: int
    unreadable: list[str]


@dataclass(frozen=True)
class _Job:
    path: Path
    records: tuple[CaptionedImage, ...]
    side: int | None
    plan: str  # digest of everything the shard depends on


@dataclass(frozen=True)
class _Written:
    name: str
    captions: list[int]
    unreadable: list[str]


def write_shards(
    records: Sequence[CaptionedImage],
    output: str | Path,
    *,
    samples_per_shard: int = 1000,
    side: int | None = None,
    processes: int = 1,
    progress: Callable[[Iterable[_Written], int], Iterable[_Written]] = lambda items, _: items,
) -> ShardingResult:
    """Write `000000.tar` and so on and their manifest; shards that are there already are not written again.

    Images are shuffled first, so that a shard is a sample of the whole, and decoded, so that no shard holds
    one that cannot be read.

    Args:
        records: what to write, of one split.
        output: folder; made if missing.
        samples_per_shard: images a shard.
        side: bring the short side down to so many pixels (JPEG, quality 95); None keeps the files.
        processes: shards written side by side.
        progress: wraps the finished shards; its second argument is their number.

    Raises:
        DataError: if the folder cannot be written, or holds shards of other data or settings.
    """
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be created ({error.strerror}); choose another folder") from None
    remove_unfinished(output)
    order = list(records)
    random.Random(0).shuffle(order)
    jobs = []
    for number, start in enumerate(range(0, len(order), samples_per_shard)):
        mine = tuple(order[start : start + samples_per_shard])
        path = output / f"{number:06d}.tar"
        jobs.append(_Job(path, mine, side, _digest(mine, side)))
    strangers = {path.name for path in output.glob("*.tar")} - {job.path.name for job in jobs}
    if strangers:
        raise DataError(
            f"{output}: contains {min(strangers)}, which is from other data; choose another folder"
        )
    written = list(progress(map_in_processes(_write, jobs, processes), len(jobs)))
    unreadable = [reason for shard in written for reason in shard.unreadable]
    counts = {shard.name: shard.captions for shard in written}
    write_manifest(output, counts, unreadable=unreadable)
    return ShardingResult(len(written), sum(map(len, counts.values())), unreadable)


def _write(job: _Job) -> _Written:
    """Write one shard, or find it written; a small file beside it says what is in it."""
    note = job.path.with_suffix(".json")
    if job.path.exists() and note.exists():
        try:
            values = json.loads(note.read_text(encoding="utf-8"))
            if values["plan"] == job.plan:
                return _Written(job.path.name, values["captions"], values["unreadable"])
        except (ValueError, KeyError):
            pass  # cut off: write both again
    unreadable: list[str] = []
    captions = write_shard(job.path, _samples(job, unreadable))
    write_text(note, json.dumps({"plan": job.plan, "captions": captions, "unreadable": unreadable}))
    return _Written(job.path.name, captions, unreadable)


def _samples(job: _Job, unreadable: list[str]) -> Iterator[tuple[str, str, bytes, Sequence[str]]]:
    for number, record in enumerate(job.records):
        try:
            image = load_image(record.path)
            suffix, content = _encode(image, record.path, job.side)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        yield f"{job.path.stem}{number:06d}", suffix, content, record.captions


def _encode(image: Image.Image, path: Path, side: int | None) -> tuple[str, bytes]:
    """An image's suffix and file: its own, or a smaller one."""
    if side is None or min(image.size) <= side:
        return path.suffix.lower(), path.read_bytes()
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=_QUALITY)
    return ".jpg", file.getvalue()


def _digest(records: Iterable[CaptionedImage], side: int | None) -> str:
    parts = [repr(side), *(f"{record.path}|{record.captions}" for record in records)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
