"""The claim of a job on its output: no second job writes there, and the next one knows how it was made.

A claim is a small hidden file: `.captions.jsonl.ddcap-job` beside a file, `.ddcap-job` in a folder. While the
job runs, the operating system locks it; the lock ends with the process, however that ends. Its one line of
JSON stays: the options, the folder that relative names start from, the process, and whether it came to close
its output. If it did, nothing there is torn.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ddcap import __version__
from ddcap.errors import DataError

logger = logging.getLogger("ddcap")

JOB_FILE = ".ddcap-job"
_LOCKED_BYTE = 1 << 30  # Windows locks bytes for readers, too: one that is never read
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_DEFAULTS = {"num": 1, "seed": 0, "model": "default", "precision": "auto", "runtime": "auto"}
_WITHOUT_EFFECT = ("batch_size",)


class Claim:
    """One job's claim on an output.

    Args:
        output: a file, there or not, or a folder that is there.
        goes_on: whether the job goes on with what is there; else it begins anew.

    Attributes:
        base: the folder that relative names in the output start from.
        is_new: there was none before: the output may be of anybody, or of an earlier version.
        was_killed: the job before did not come to its end.

    Raises:
        DataError: if another job has the claim, or the name of its file is taken.
        OSError: if it cannot be written.
    """

    def __init__(self, output: Path, *, goes_on: bool) -> None:
        real = Path(os.path.realpath(output))
        is_folder = real.is_dir()
        self._output, self._kind = output, "folder" if is_folder else "file"
        self._path = real / JOB_FILE if is_folder else real.with_name(f".{real.name}{JOB_FILE}")
        self._file, self._has_begun = self._locked(), False
        try:
            before = self._read()
            self.is_new = before is None
            self.was_killed = before is not None and not before.get("closed", False)
            goes_on = goes_on and before is not None
            self._record: dict[str, Any] = dict(before) if before else {}
            self.base: str = self._record["folder"] if goes_on else os.getcwd()
            self._options: dict[str, Any] | None = self._record.get("options") if goes_on else None
            self._write({"folder": self.base, "options": None, "closed": True, **self._record})
        except BaseException:
            self._file.close()
            raise

    def agree(self, options: Mapping[str, Any]) -> None:
        """Note the options of this job.

        Raises:
            DataError: if what is there was made with others; it names them.
        """
        now = _plain(options)
        if self._options is not None and now != self._options:
            raise DataError(
                f"{self._output}: was made with other options ({_differences(self._options, now)}); give the "
                f"same options, choose another {self._kind}, or start over with --overwrite"
            )
        self._options = now
        self._has_begun = True
        self._write({"folder": self.base, "options": now, "closed": False})

    def release(self) -> None:
        """Let other jobs have it; the output is closed. A claim that was not used leaves no new file."""
        if self._file.closed:
            return
        if self._has_begun:
            self._write({**self._record, "closed": True})
        elif self.is_new:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _locked(self) -> BinaryIO:
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # the last one for Windows
            file = os.fdopen(os.open(self._path, flags, 0o666), "r+b", buffering=0)
            try:
                if not _lock(file, self._output):
                    raise DataError(
                        f"{self._output}: {self._holder(file)} is writing to it; wait until it has finished, "
                        f"or choose another {self._kind}"
                    )
                if self._path.exists() and os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # the one before has just removed it

    def _holder(self, file: BinaryIO) -> str:
        try:
            record = json.loads(file.readline())
            return f"process {record['process']} on {record['host']}"
        except (ValueError, KeyError, TypeError, OSError):
            return "another process"

    def _read(self) -> dict[str, Any] | None:
        """The line of the job before; None if there is none."""
        self._file.seek(0)
        content = self._file.read().partition(b"\n")[0]
        if not content:
            return None
        try:
            record = json.loads(content)
            if isinstance(record["ddcap"], str) and isinstance(record["folder"], str):
                return dict(record)
        except (ValueError, KeyError, TypeError):
            pass
        raise DataError(
            f"{self._path}: is damaged or not of ddcap, which needs this name for its job; move it away"
        )

    def _write(self, record: Mapping[str, Any]) -> None:
        """In one piece, and the old end cut off afterwards: a kill leaves a whole first line."""
        process = {"process": os.getpid(), "host": platform.node()}
        self._record = {**record, "ddcap": __version__, **process}
        line = json.dumps(self._record).encode() + b"\n"
        self._file.seek(0)
        self._file.write(line)
        self._file.truncate(len(line))


def _lock(file: BinaryIO, output: Path) -> bool:
    """Try to lock; True if this process has the lock now."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(0)
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: this disk has no file locks; run one job at a time", output)
    return True


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back, without those that change no caption."""
    given = {
        name: value
        for name, value in options.items()
        if value is not None and name not in _WITHOUT_EFFECT and _DEFAULTS.get(name) != value
    }
    plain: dict[str, Any] = json.loads(json.dumps(given, default=str))
    return plain


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(
        f"--{name.replace('_', '-')}: {_shown(before.get(name))} before, {_shown(now.get(name))} now"
        for name in names
    )


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
