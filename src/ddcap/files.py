"""Files that are whole or not there: written under another name, brought to the disk, then renamed.

So neither a crash nor a reader sees half a file, what was there before stays until the new one is complete,
and processes that write the same file do not write into each other's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".writing"
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # an open file by its number, whatever is behind it


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write one file under, which becomes `path` when the context ends well, and is removed else.

    The file gets the permissions of the one it replaces, or those of any new file; a link is replaced, not
    what it leads to. What is no plain file (a pipe, a terminal) cannot be replaced; its own name is given.

    Args:
        path: of the file; its folder has to exist.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    if str(path).startswith(_STREAMS) or (path.exists() and not path.is_file() and not path.is_dir()):
        yield path
        return
    temporary = _another_name(path)
    try:
        temporary.touch(exist_ok=False)
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        _to_disk(temporary)
        temporary.chmod(mode & 0o777)  # some libraries write for the owner only
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _to_disk(path.parent)


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the context ends well, and is removed else.

    Args:
        path: of the folder; those above it are made.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    temporary, aside = _another_name(path), _another_name(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            _to_disk(inside)
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _to_disk(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file, see `replacing`.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_unfinished(folder: str | Path, *, older_than: float = 3600) -> None:
    """Remove what a process that was killed while writing has left in `folder`.

    Args:
        folder: nothing if there is none.
        older_than: seconds without a change, after which nobody is taken to be at work on it any more; 0
            where no other process writes there.
    """
    for path in Path(folder).glob(f".*{_SUFFIX}"):
        try:
            newest = max(one.stat().st_mtime for one in (path, *path.rglob("*")))
        except OSError:
            continue  # finished or removed in the meantime
        if time.time() - newest < older_than:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _another_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process has, on this machine or on another one."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would outlast a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
