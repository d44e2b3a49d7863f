"""Captions into tar files: for each tar of images one of the same name, with the same keys.

A sample is `KEY.txt`, the caption, and `KEY.json`, the row; with images `KEY.jpg` (or its format) before
them. A tar grows under a hidden name and gets its own when it is complete, so what is seen is whole. After a
kill the hidden one is gone on with, behind its last whole sample.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ddcap.bulk.claim import Claim
from ddcap.bulk.names import tar_of
from ddcap.bulk.output import CaptionOutput, Row, not_ours
from ddcap.bulk.rows import JsonLines
from ddcap.bulk.tar_input import TarImage, is_tar
from ddcap.bulk.walk import SeenNames
from ddcap.data.images import ImageSource
from ddcap.errors import DataError, remedy
from ddcap.files import publish, replacing

WITHOUT_CAPTION = "without_caption.jsonl"
"""Beside the tars: a row for each image without a caption, with the reason."""

_LONGEST_ROW = 1_000_000  # bytes


class TarOutput(CaptionOutput):
    """A folder of tars.

    Args:
        folder: is made.
        tars: all tar files of images of the job, as they are given; their names differ.
        overwrite: begin anew.
        with_pictures: copy each image, too.

    Raises:
        DataError: if something else than tars is to be captioned, or two have one name, or the folder cannot
            be written, holds other tars of these names, or another job has it.
    """

    def __init__(
        self, folder: Path, tars: Iterable[str], *, overwrite: bool = False, with_pictures: bool = False
    ) -> None:
        self._folder, self._overwrite, self._with_pictures = folder, overwrite, with_pictures
        self._keys, self._again = SeenNames(), set[Path]()
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
            goes_on = (folder / WITHOUT_CAPTION).exists() or any(map(_is_begun, self._targets))
            self._claim = Claim(folder, goes_on=goes_on and not overwrite)
            try:
                for target in self._targets:
                    self._check_ours(target)
                self._without = JsonLines(
                    folder / WITHOUT_CAPTION,
                    overwrite=overwrite,
                    claim=self._claim,
                    on_failed=self._note_failed,
                )
            except BaseException:
                self._claim.release()
                raise
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror}); {remedy(error)}") from None
        self.names, self.done = self._without.names, self._without.done

    def _target(self, tar: str) -> Path:
        return self._folder / PurePosixPath(Path(tar).as_posix()).name

    def _check_ours(self, target: Path) -> None:
        """Refuse tars of somebody else: they are neither added to nor removed."""
        for path in (target, _growing(target)):
            if os.path.lexists(path) and not _is_ours(
                path, may_be_torn=self._claim.was_killed or self._claim.is_new
            ):
                raise not_ours(self._folder, f"{path.name} in it is not of captions", overwrite=False)

    def _note_failed(self, name: str) -> None:
        """The tar of an image that failed is read again, though it may be complete."""
        for tar in (name, tar_of(name)):
            if tar is not None and is_tar(tar):
                self._again.add(self._target(tar))

    def begin(self, options: Mapping[str, Any]) -> None:
        """See `CaptionOutput`."""
        images = {"with_pictures": True} if self._with_pictures else {}
        self._claim.agree({**options, **images})
        self._without.begin(options)
        self.done = self._without.done
        for target in self._targets:
            if self._overwrite:
                target.unlink(missing_ok=True)
                _growing(target).unlink(missing_ok=True)
                self._again.clear()
            elif _growing(target).exists():  # what a kill has left is gone on with, its torn end cut off
                with _growing(target).open("r+b") as file:
                    file.truncate(self._take_samples(file, target))

    def _take_samples(self, file: BinaryIO, target: Path) -> int:
        """Note the samples of a tar; where they end."""
        end = 0
        for end, stem, row in _samples(file):  # noqa: B007 (the last one is wanted)
            self.done.add(row["image"])
            self._keys.add(f"{target}/{stem}")
        return end

    def complete(self, tar: str) -> int | None:
        """Captions of a tar that is complete; None if it is not, or something in it failed."""
        target = self._target(tar)
        if not target.exists():
            return None
        with target.open("rb") as file:
            if target not in self._again:
                return sum(1 for _ in _samples(file))
            self._take_samples(file, target)
        return None

    def write(self, row: Row, source: ImageSource | None = None, /) -> None:
        """Append a sample; from here on a kill cannot lose it."""
        if not isinstance(source, TarImage) or not row.get("caption"):
            self._without.write(row)
            return
        target = self._target(source.tar)
        stem, suffix = os.path.splitext(source.member)
        if not self._keys.add(f"{target}/{stem}"):
            raise DataError(f"{source}: another image has its key; rename one")
        if self._open is None or self._open[0] != target:
            self._publish_open()
            self._open = (target, self._grow(target))
        parts = [(suffix, source.content)] if self._with_pictures else []
        parts += [(".txt", row["caption"].encode()), (".json", json.dumps(row).encode())]
        self._open[1].write(b"".join(_member(stem + ending, content) for ending, content in parts))
        self._open[1].flush()
        self._without.resolve(row["image"])

    def resolve(self, name: str) -> None:
        """See `CaptionOutput`."""
        self._without.resolve(name)

    def finish(self) -> None:
        """Give the last tar its name, and those that a kill has kept from it: all images have come."""
        self._publish_open()
        for target in self._targets:
            if _growing(target).exists():
                self._publish(target)
        self._without.finish()

    def close(self) -> None:
        """Close the files."""
        if self._open is not None:
            self._open[1].close()
        self._without.close()
        self._claim.release()

    def _grow(self, target: Path) -> BinaryIO:
        """The open file of a tar that is added to; a complete one stays until the longer one is whole."""
        growing = _growing(target)
        if target.exists() and not growing.exists():
            with replacing(growing) as temporary, target.open("rb") as old, temporary.open("wb") as new:
                end = 0
                for end, _, _ in _samples(old):  # noqa: B007
                    pass
                old.seek(0)
                shutil.copyfileobj(old, new)
                new.truncate(end)
        return growing.open("ab")

    def _publish_open(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._publish(self._open[0])
            self._open = None

    def _publish(self, target: Path) -> None:
        with _growing(target).open("ab") as file:
            file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end mark
        publish(_growing(target), target)


def _is_begun(target: Path) -> bool:
    return target.exists() or _growing(target).exists()


def _is_ours(path: Path, *, may_be_torn: bool) -> bool:
    """Return True if a tar's first sample is a caption of ours; one that is torn may have none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            for _ in _samples(file):
                return True
        except DataError:
            return False
        file.seek(0)
        head = file.read(tarfile.BLOCKSIZE)
        if not head.strip(b"\0"):
            return file.read(1_000_000).strip(b"\0") == b""
        try:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.TarError:
            return may_be_torn and len(head) < tarfile.BLOCKSIZE
        return may_be_torn


def _growing(target: Path) -> Path:
    return target.with_name(f".{target.name}.growing")


def _samples(file: BinaryIO) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the end of each whole sample, its key, and its row.

    Raises:
        DataError: if a JSON member is no row.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.name.endswith(".json") and end <= size:
                    opened = archive.extractfile(member)
                    row = None if opened is None else _row(opened.read(_LONGEST_ROW))
                    if row is None:
                        raise DataError(f"{member.name}: is not a caption row; choose another folder")
                    yield end, member.name.removesuffix(".json"), row
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
    except tarfile.TarError:
        return  # torn, or nothing in it yet


def _row(content: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(content)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("image"), str) and "caption" in row
    return row if is_row else None


def _member(name: str, content: bytes) -> bytes:
    """Header, content and padding of one member."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + padding
