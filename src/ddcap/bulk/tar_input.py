"""Images out of tar files, as webdataset and img2dataset lay them out, read one after the other.

Tar files come from strangers. Nothing is unpacked to disk, no link is followed, and neither a member nor a
header gets more memory than a large photograph; what is refused is told in one line, and the rest is read.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

from ddcap.data.images import EXTENSIONS, EncodedImage

LARGEST_MEMBER = 128_000_000  # bytes; photographs of the largest cameras take less

Problem = Callable[[str, str], None]
"""Told of what cannot be used: its name, and the reason with the remedy."""


@dataclass(frozen=True)
class TarImage(EncodedImage):
    """An image of a tar file.

    Attributes:
        tar: path of the tar file, as it was given.
        member: its name in there.
    """

    tar: str
    member: str


def is_tar(name: str | os.PathLike[str]) -> bool:
    """Return True for the name of a tar file, by its ending."""
    return os.fspath(name).lower().endswith(".tar")


def tar_images(
    file: BinaryIO, tar: str, *, is_wanted: Callable[[str], bool], on_problem: Problem
) -> Iterator[TarImage]:
    """The images of a tar file, in its order, one at a time in memory.

    Args:
        file: the open tar file; it has to seek.
        tar: its name.
        is_wanted: asked by the name of an image, `tar/member`, before it is read.
        on_problem: told of what is refused, and where the file is damaged; what can be read is.
    """
    for archive, member in tar_members(file, tar, on_problem):
        name = f"{tar}/{member.name}"
        if not is_wanted(name):
            continue
        try:
            opened = archive.extractfile(member)
            assert opened is not None  # it is a plain file
            content = opened.read()
        except (tarfile.TarError, OSError) as error:
            on_problem(tar, f"cut off in {member.name} ({error}); copy or download it again")
            return
        yield TarImage(name, content, tar, member.name)


def tar_members(
    file: BinaryIO, tar: str, on_problem: Problem
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The plain files of a tar file that are images by their names; nothing of them is read."""
    bounded, where = _Bounded(file), 0
    try:
        archive = tarfile.TarFile(fileobj=bounded)  # type: ignore[arg-type]
        while (member := archive.next()) is not None:
            if member.size < 0 or archive.offset <= where:
                raise tarfile.ReadError("a member of negative size")  # would be read for ever
            where = archive.offset
            archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header it has seen
            if member.isdir() or PurePosixPath(member.name).suffix.lower() not in EXTENSIONS:
                continue
            refused = _why_refused(member)
            if refused is None:
                yield archive, member
            else:
                on_problem(f"{tar}/{member.name}", refused)
        bounded.seek(archive.offset)
        if (
            bounded.read(tarfile.BLOCKSIZE).strip(b"\0")
            or bounded.tell() < archive.offset + tarfile.BLOCKSIZE
        ):
            raise tarfile.ReadError("no end mark")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        on_problem(
            tar, f"no tar file, damaged or cut off after {where:,} bytes ({error}); copy or download it again"
        )


def _why_refused(member: tarfile.TarInfo) -> str | None:
    """Say why a member with the name of an image is not read, and what helps; None if it is."""
    posix, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    if posix.is_absolute() or windows.anchor or ".." in windows.parts:
        return "leads out of the tar file; give it a plain name"
    if member.issym() or member.islnk():
        return f"is a link (to {member.linkname!r}), and links in tar files are refused; put the file there"
    if not member.isfile() or member.issparse():
        return "is no plain file; leave it out"
    if member.size > LARGEST_MEMBER:
        return f"has {member.size:,} bytes, over {LARGEST_MEMBER:,}; make it smaller"
    return None


class _Bounded:
    """A file that gives no more at once than `LARGEST_MEMBER`: a header cannot ask for more memory.

    Args:
        file: open, can seek.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes.

        Raises:
            tarfile.ReadError: if they are too many.
        """
        if not 0 <= size <= LARGEST_MEMBER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)
