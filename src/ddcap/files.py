"""Files that are whole or not there, and names: of a folder on this disk, or of a repository on the Hub.

A file is written under another name, brought to the disk, then renamed. So neither a crash nor a reader sees
half a file, what was there before stays until the new one is complete, and processes that write the same file
do not write into each other's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from ddcap.errors import DataError, DDCapError, remedy

_SUFFIX = ".writing"
_LONGEST_BEGINNING = 200  # bytes; of a name that may have 255 on most disks
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # an open file by its number, whatever is behind it


@contextlib.contextmanager
def replacing(path: str | Path, *, keep: bool = False) -> Iterator[Path]:
    """A name to write one file under, which becomes `path` when the context ends well, and is removed else.

    The file gets the permissions of the one it replaces, or those of any new file; a link is replaced, not
    what it leads to. What is no plain file (a pipe, a terminal) cannot be replaced; its own name is given.

    Args:
        path: of the file; its folder has to exist.
        keep: what is there stays, even if it came in the meantime.

    Raises:
        FileExistsError: if `keep`, and there is something.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if keep and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
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
        if keep:
            _rename_to_free(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _to_disk(path.parent)


def _rename_to_free(temporary: Path, path: Path) -> None:
    """Rename a file, unless the name is taken: `os.replace` would not notice one that has just come."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # this disk has no hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)
    else:
        temporary.unlink()


def publish(growing: str | Path, path: str | Path) -> None:
    """Give a file that has grown under another name its own, when it is whole.

    Args:
        growing: the file, on the same disk.
        path: its name from now on; what was there is replaced.

    Raises:
        OSError: if it cannot be.
    """
    _to_disk(Path(growing))
    os.replace(growing, path)
    _to_disk(Path(path).parent)


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


def read_text(path: str | Path, what: str) -> str:
    """The text of a file that a person names.

    Raises:
        DDCapError: if it cannot be read; `what` says what it was named for.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DDCapError(f"{what} {path}: cannot be read ({reason}); give a text file") from None


def listed_lines(path: str | Path, what: str) -> tuple[str, ...]:
    """The lines of a file that lists something, without empty ones and remarks, which "#" begins.

    Raises:
        DDCapError: see `read_text`.
    """
    lines = (line.partition("#")[0].strip() for line in read_text(path, what).splitlines())
    return tuple(line for line in lines if line)


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
    beginning = os.fsdecode(os.fsencode(path.name)[:_LONGEST_BEGINNING])
    return path.with_name(f".{beginning}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would outlast a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# JSON files that people hand around: a wrong path or a damaged file is one line.


def read_json(path: str | Path, remedy: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        remedy: what to give instead, for the message.

    Raises:
        DataError: if it cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); {remedy}") from None


def write_json(path: str | Path, content: Any, indent: int = 1) -> None:
    """Write one JSON file.

    Raises:
        DataError: if it cannot be written.
    """
    try:
        write_text(path, json.dumps(content, ensure_ascii=False, indent=indent) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}") from None


# Names of models: of a folder on this disk, or of a repository on the Hub.

logger = logging.getLogger("ddcap")

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


def is_folder_name(name: str | Path) -> bool:
    r"""Return True for the name of a folder, there or not, rather than a Hub id or "default".

    `C:\folder` and `C:/folder` are folders on every system: no Hub id has a colon or a backslash.
    """
    text = str(name)
    if isinstance(name, Path) or Path(name).exists():
        return True
    return text.startswith((".", "/", "~")) or "\\" in text or bool(PureWindowsPath(text).drive)


def announce_download(whose: str, what: str, name: str, revision: str | None) -> None:
    """Say that something is about to be downloaded from the Hub, unless it is a folder or here already.

    Args:
        whose: the model that asks for it.
        what: it is to it.
        name: folder or Hub id.
        revision: of the repository; None for its newest state.
    """
    if is_folder_name(name) or _is_cached(name, revision):
        return
    state = "newest revision" if revision is None else f"revision {revision}"
    logger.warning("%s: downloading its %s from the Hub: %s, %s", whose, what, name, state)


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:
        return has("config.json") and any(map(has, _WEIGHTS))
    except HFValidationError:
        return False  # no name of a repository; the Hub's own refusal will follow
