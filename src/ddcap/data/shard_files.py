"""Webdataset shards as files: one, a folder of them, and copies of those that are not on this disk."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from ddcap.data.images import EXTENSIONS
from ddcap.errors import DataError, remedy
from ddcap.files import remove_unfinished, replacing, write_text

# One webdataset shard: a tar file of images with their captions, read at random or written. A sample is an
# image `KEY.jpg` (or another format) and `KEY.txt` with its captions, one a line, as `img2dataset` lays
# them out; other members (`KEY.json`) are left alone.


@dataclass(frozen=True)
class Sample:
    """One image of a shard and what people wrote about it.

    Attributes:
        key: its name in the shard, without suffix.
        image: the encoded file.
        captions: at least one.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    key: str
    image: tuple[int, int]  # offset and size in the file
    text: tuple[int, int]


class ShardFile:
    """A shard on the local disk, indexed once, read at random.

    Args:
        path: the tar file.

    Raises:
        DataError: if it is no tar file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in _whole_members(tar):
                    stem, suffix = os.path.splitext(member.name)
                    kind = "text" if suffix == ".txt" else "image" if suffix.lower() in EXTENSIONS else ""
                    members.setdefault(stem, {})[kind] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{path}: not a tar file, or damaged ({error}); write it again") from None
        self._places = [
            _Place(key, parts["image"], parts["text"])
            for key, parts in members.items()
            if "image" in parts and "text" in parts
        ]
        self._file = path.open("rb")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, in the order of the file.

        Raises:
            DataError: if it is cut off or has no caption.
        """
        if number >= len(self._places):
            raise DataError(f"{self.path}: ends before sample {number}; write or copy it again")
        place = self._places[number]
        captions = tuple(
            line.strip()
            for line in self._read(place.text).decode("utf-8", "replace").splitlines()
            if line.strip()
        )
        if not captions:
            raise DataError(f"{self.path}: {place.key}.txt is empty; write the shard again without it")
        return Sample(place.key, self._read(place.image), captions)

    def caption_counts(self) -> list[int]:
        """Captions of every sample; 0 where there is none."""
        return [
            sum(bool(line.strip()) for line in self._read(place.text).splitlines()) for place in self._places
        ]

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _read(self, place: tuple[int, int]) -> bytes:
        self._file.seek(place[0])
        return self._file.read(place[1])


def _whole_members(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    """The regular files of an archive, up to where it is cut off."""
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:
            return  # cut off in a header; what came before can be used
        if member is None:
            return
        if member.isfile():
            yield member
        tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header it has seen


def write_shard(path: Path, samples: Iterable[tuple[str, str, bytes, Sequence[str]]]) -> list[int]:
    """Write a whole shard; captions per sample.

    Args:
        path: the tar file.
        samples: key, the image's suffix, its encoded file, its captions.

    Raises:
        DataError: if it cannot be written.
    """
    counts = []
    try:
        with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, suffix, image, captions in samples:
                lines = [" ".join(caption.split()) for caption in captions]
                for name, content in ((f"{key}{suffix}", image), (f"{key}.txt", "\n".join(lines).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                counts.append(len(lines))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); {remedy(error)}") from None
    return counts


# Copies of shards that are not on this disk, in a folder that is this cache's own. The folder is made here,
# or was empty, and carries a marker since. Nothing is deleted but the copies, which are named by a digest of
# their address.

_MARKER = ".ddcap_shard_cache"
_COPY = re.compile(r"[0-9a-f]{16}\.tar")
_ATTEMPTS = 3


def local_path(url: str) -> Path | None:
    """Return the path of a shard, or of a folder of them, on this disk; None if it is elsewhere."""
    protocol, _ = fsspec.core.split_protocol(url)
    if protocol in ("file", "local"):
        return Path(fsspec.core.url_to_fs(url)[1])
    return Path(url) if protocol is None else None


class ShardCache:
    """A folder of copies; several processes may share it.

    Args:
        folder: new, empty, or of an earlier cache.

    Raises:
        DataError: if it holds anything else, or cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # who finds something in the folder finds the marker too, if it is a cache: that is the first file
            if any(self.folder.iterdir()) and not (self.folder / _MARKER).exists():
                raise DataError(
                    f"{folder}: contains files that are not copies of shards; set data.shard_cache to a "
                    "new or empty folder"
                )
            (self.folder / _MARKER).touch()
        except OSError as error:
            raise DataError(
                f"{folder}: cannot store copies of shards ({error.strerror}); change data.shard_cache"
            ) from None
        remove_unfinished(self.folder)

    def fetch(self, url: str) -> Path:
        """The copy of a shard, made if there is none.

        Args:
            url: whatever `fsspec` opens (http, s3, gs, hf, ...).

        Raises:
            DataError: if it cannot be read after some attempts.
        """
        copy = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
        reason: Exception | None = None
        for _ in range(_ATTEMPTS):
            if copy.exists():
                os.utime(copy)  # for `make_room`: just used
                return copy
            try:
                with (
                    fsspec.open(url, "rb") as source,
                    replacing(copy) as temporary,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
            except (
                OSError,
                ImportError,
                ValueError,
            ) as error:  # ImportError: a protocol's package is missing
                reason = error
        raise DataError(f"{url}: cannot be read ({reason}); check the address and your permissions") from None

    def make_room(self, keep: int) -> None:
        """Delete all but the `keep` copies used last; who still reads one keeps what it has open."""
        used: list[tuple[float, Path]] = []
        for path in self.folder.iterdir():
            if not _COPY.fullmatch(path.name):
                continue
            try:
                used.append((path.stat().st_mtime, path))
            except OSError:
                continue  # another process was faster
        for _, path in sorted(used, reverse=True)[keep:]:
            path.unlink(missing_ok=True)


# What a folder of shards holds, so that an epoch can be planned without opening one.

NAME = "manifest.json"
_FORMAT = "ddcap-shards-1"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        url: a path, or what `fsspec` opens.
        captions: (samples,) number of captions of every sample, in the order of the file.
    """

    url: str
    captions: NDArray[np.int64]


class SampleNumbers:
    """Samples counted through all shards.

    Args:
        shards: in order.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.starts = np.cumsum([0, *(len(shard.captions) for shard in shards)])

    def locate(self, number: int) -> tuple[int, int]:
        """The shard that holds a sample, and the sample's place in it."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])


def read_manifest(
    source: str, progress: Callable[[Sequence[Path], int], Iterable[Path]] = lambda items, _: items
) -> list[Shard]:
    """The shards of a folder or URL.

    A local folder of tar files without a manifest, as `img2dataset` leaves it, is indexed once and gets one.

    Args:
        source: folder or URL.
        progress: wraps the tar files to be indexed; its second argument is their number.

    Raises:
        DataError: if there is no manifest, or it is damaged.
    """
    folder = local_path(source)
    source = source.rstrip("/") if folder is None else str(folder)
    if folder is not None and not (folder / NAME).is_file():
        return _index(folder, progress)
    try:
        with fsspec.open(f"{source}/{NAME}", "rt", encoding="utf-8") as file:
            values = json.load(file)
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']!r}")
        return [
            Shard(f"{source}/{entry['name']}", np.asarray(entry["captions"], dtype=np.int64))
            for entry in values["shards"]
        ]
    except (OSError, ImportError) as error:
        raise DataError(
            f"{source}/{NAME}: cannot be read ({error}); write shards with 'ddcap data shard', or index a "
            "copy of the folder on this machine"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}/{NAME}: damaged ({error}); delete it and index the folder again") from None


def write_manifest(folder: Path, counts: dict[str, list[int]], **more: Any) -> None:
    """Write a manifest for the tar files named in `counts`, with their captions per sample."""
    entries = [{"name": name, "captions": captions} for name, captions in sorted(counts.items())]
    write_text(folder / NAME, json.dumps({"format": _FORMAT, **more, "shards": entries}))


def _index(folder: Path, progress: Callable[[Sequence[Path], int], Iterable[Path]]) -> list[Shard]:
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder}: has no {NAME} and no tar files; write shards with 'ddcap data shard'")
    counts: dict[str, list[int]] = {}
    for path in progress(paths, len(paths)):
        shard = ShardFile(path)
        counts[path.name] = shard.caption_counts()
        shard.close()
    write_manifest(folder, counts)
    return [Shard(str(path), np.asarray(counts[path.name], dtype=np.int64)) for path in paths]
