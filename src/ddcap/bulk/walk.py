"""The images of folders, one by one: a million names take no more memory than ten."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ddcap.data.images import EXTENSIONS
from ddcap.errors import remedy

Links = Literal["skip", "follow", "refuse"]
"""What becomes of symbolic links inside folders: left out, followed, or reported as errors."""


def walk(
    paths: Iterable[str | Path],
    *,
    links: Links = "skip",
    on_problem: Callable[[Path, str], None],
    on_read: Callable[[Path], None] = lambda _: None,
) -> Iterator[Path]:
    """Files as they are given, and the images in folders, in the order in which the file system has them.

    A folder is entered once, however many links lead to it.

    Args:
        paths: of files and folders.
        links: what becomes of symbolic links inside folders. What is given by name is always followed.
        on_problem: told of a folder that cannot be read, or of a link that is refused; the walk goes on.
        on_read: told of a folder that was read to its end.
    """
    entered: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            try:
                state = folder.stat()
                if (state.st_dev, state.st_ino) in entered:
                    continue
                entered.add((state.st_dev, state.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        yield from _visit(entry, links, on_problem, waiting)
                on_read(folder)
            except OSError as error:
                on_problem(folder, f"cannot be read ({error.strerror or error}); {remedy(error)}")


def _visit(
    entry: os.DirEntry[str], links: Links, on_problem: Callable[[Path, str], None], waiting: list[Path]
) -> Iterator[Path]:
    """The entry, if it is an image; a folder is put into `waiting`."""
    path = Path(entry.path)
    if entry.is_symlink():
        if links == "refuse":
            on_problem(path, "is a link, and links are refused; give --links follow, or its target")
        if links != "follow":
            return
    if entry.is_dir():
        waiting.append(path)
    elif path.suffix.lower() in EXTENSIONS and entry.is_file():
        yield path


class SeenNames:
    """Names that were seen, by their 64-bit hashes: 8 MB for a million.

    Two names of a million have the same hash with a probability of 3 in 100 million.

    Args:
        key: of a name; names with one key are one.
    """

    _RECENT = 50_000

    def __init__(self, key: Callable[[str], str] = str) -> None:
        self._key = key
        self._sorted = np.zeros(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, name: str) -> bool:
        return self.holds(self.number(name))

    def add(self, name: str) -> bool:
        """Add a name; False if it was seen before."""
        return self.add_number(self.number(name))

    def number(self, name: str) -> int:
        """The hash of a name."""
        content = self._key(name).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

    def add_number(self, number: int) -> bool:
        """Add a hash; False if it was seen before."""
        if self.holds(number):
            return False
        self._recent.add(number)
        if len(self._recent) >= self._RECENT:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return True

    def holds(self, number: int) -> bool:
        """Return True if a hash was seen."""
        if number in self._recent:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(number)))
        return place < len(self._sorted) and int(self._sorted[place]) == number
