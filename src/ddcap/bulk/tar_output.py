"""Captions into tar files: for each tar of pictures one of the same name, with the same keys.

A sample is `KEY.txt`, the caption, and `KEY.json`, the row; with pictures `KEY.jpg` (or its format) before
them. A tar grows under a hidden name and gets its own when it is complete, so what is seen is whole. After a
kill the hidden one is gone on with, behind its last whole sample.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ddcap.bulk.outputs import CaptionOutput, JsonLines, Row
from ddcap.bulk.tar_input import TarPicture, is_tar
from ddcap.bulk.walk import SeenNames
from ddcap.data.images import ImageSource
from ddcap.errors import DataError, remedy
from ddcap.files import publish

WITHOUT_CAPTION = "without_caption.jsonl"
"""Beside the tars: a row for each picture without a caption, with the reason."""


class TarOutput(CaptionOutput):
    """A folder of tars.

    Args:
        folder: is made.
        tars: all tar files of pictures of the job, as they are given; their names differ.
        overwrite: begin anew.
        with_pictures: copy each picture, too.

    Raises:
        DataError: if something else than tars is to be captioned, or two have one name, or the folder cannot
            be written.
    """

    def __init__(
        self, folder: Path, tars: Iterable[str], *, overwrite: bool = False, with_pictures: bool = False
    ) -> None:
        self._folder, self._with_pictures, self._keys = folder, with_pictures, SeenNames()
        self._open: tuple[Path, BinaryIO] | None = None
        self._targets: dict[Path, str] = {}
        for tar in tars:
            if not is_tar(tar):
                raise DataError(
                    f"{tar}: is not a tar file, and --out {folder}/ works with tar files only; "
                    "use --out captions.jsonl, .csv or .parquet"
                )
            other = self._targets.setdefault(self._target(tar), tar)
            if other != tar:
                raise DataError(
                    f"{tar} and {other} have the same name; write their captions to different folders"
                )
            if Path(tar).resolve() == self._target(tar).resolve():
                raise DataError(f"{folder}: contains the input {tar}; choose another folder")
        try:
            folder.mkdir(exist_ok=True, parents=True)
            self._without = JsonLines(folder / WITHOUT_CAPTION, overwrite=overwrite)
            self.done = self._without.done
            for target in self._targets:
                self._begin(target, overwrite)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror}); {remedy(error)}") from None

    def _target(self, tar: str) -> Path:
        return self._folder / PurePosixPath(Path(tar).as_posix()).name

    def _begin(self, target: Path, overwrite: bool) -> None:
        """Go on with what a kill has left of a tar, its torn end cut off."""
        if overwrite:
            target.unlink(missing_ok=True)
            _growing(target).unlink(missing_ok=True)
        if _growing(target).exists():
            with _growing(target).open("r+b") as file:
                end = 0
                for end, stem, image in _samples(file):  # noqa: B007 (the last one is wanted)
                    self.done.add(image)
                    self._keys.add(f"{target}/{stem}")
                file.truncate(end)

    def complete(self, tar: str) -> int | None:
        """Captions of a tar that is complete; None if it is not."""
        target = self._target(tar)
        if not target.exists():
            return None
        with tarfile.open(target) as archive:
            return sum(member.name.endswith(".json") for member in archive)

    def write(self, row: Row, source: ImageSource | None = None, /) -> None:
        """Append a sample; from here on a kill cannot lose it."""
        if not isinstance(source, TarPicture) or not row.get("caption"):
            self._without.write(row)
            return
        target = self._target(source.tar)
        stem, suffix = os.path.splitext(source.member)
        if not self._keys.add(f"{target}/{stem}"):
            self._without.write({**row, "error": f"{source}: another picture has its key; rename one"})
            return
        if self._open is None or self._open[0] != target:
            self._publish_open()
            self._open = (target, _growing(target).open("ab"))
        parts = [(suffix, source.content)] if self._with_pictures else []
        parts += [(".txt", row["caption"].encode()), (".json", json.dumps(row).encode())]
        self._open[1].write(b"".join(_member(stem + ending, content) for ending, content in parts))
        self._open[1].flush()

    def finish(self) -> None:
        """Give the last tar its name, and those that a kill has kept from it: all pictures have come."""
        self._publish_open()
        for target in self._targets:
            if _growing(target).exists():
                self._publish(target)

    def close(self) -> None:
        """Close the files."""
        if self._open is not None:
            self._open[1].close()
        self._without.close()

    def _publish_open(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._publish(self._open[0])
            self._open = None

    def _publish(self, target: Path) -> None:
        with _growing(target).open("ab") as file:
            file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end mark
        publish(_growing(target), target)


def _growing(target: Path) -> Path:
    return target.with_name(f".{target.name}.growing")


def _samples(file: BinaryIO) -> Iterator[tuple[int, str, str]]:
    """Where each whole sample ends, its key, and the picture it is of."""
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.name.endswith(".json") and end <= size:
                    opened = archive.extractfile(member)
                    assert opened is not None
                    yield end, member.name.removesuffix(".json"), json.loads(opened.read())["image"]
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
    except tarfile.TarError:
        return  # torn, or nothing in it yet


def _member(name: str, content: bytes) -> bytes:
    """Header, content and padding of one member."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + padding
