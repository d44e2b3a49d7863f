"""One webdataset shard: a tar file of pictures with their captions, read at random or written.

A sample is a picture `KEY.jpg` (or another format) and `KEY.txt` with its captions, one a line, as
`img2dataset` lays them out; other members (`KEY.json`) are left alone.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddcap.data.picture_formats import EXTENSIONS
from ddcap.errors import DataError, remedy
from ddcap.files import replacing


@dataclass(frozen=True)
class Sample:
    """One picture of a shard and what people wrote about it.

    Attributes:
        key: its name in the shard, without suffix.
        picture: the encoded file.
        captions: at least one.
    """

    key: str
    picture: bytes
    captions: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    key: str
    picture: tuple[int, int]  # offset and size in the file
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
                    kind = "text" if suffix == ".txt" else "picture" if suffix.lower() in EXTENSIONS else ""
                    members.setdefault(stem, {})[kind] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{path}: not a tar file, or damaged ({error}); make it again") from None
        self._places = [
            _Place(key, parts["picture"], parts["text"])
            for key, parts in members.items()
            if "picture" in parts and "text" in parts
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
            raise DataError(f"{self.path}: ends before sample {number}; make or copy it again")
        place = self._places[number]
        captions = tuple(
            line.strip()
            for line in self._read(place.text).decode("utf-8", "replace").splitlines()
            if line.strip()
        )
        if not captions:
            raise DataError(f"{self.path}: {place.key}.txt is empty; make the shard again without it")
        return Sample(place.key, self._read(place.picture), captions)

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
        samples: key, the picture's suffix, its encoded file, its captions.

    Raises:
        DataError: if it cannot be written.
    """
    counts = []
    try:
        with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, suffix, picture, captions in samples:
                lines = [" ".join(caption.split()) for caption in captions]
                for name, content in ((f"{key}{suffix}", picture), (f"{key}.txt", "\n".join(lines).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                counts.append(len(lines))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); {remedy(error)}") from None
    return counts
