"""The error types a user can meet: one line that names the thing, the reason and the remedy."""

from __future__ import annotations

import errno
import socket


class DDCapError(ValueError):
    """A mistake in what the user gave us; the command line prints its message and no traceback."""


class ImageError(DDCapError):
    """An image that cannot be captioned: missing, unreadable, truncated, too large or too small."""


class DataError(DDCapError):
    """A data set file that is missing or does not have the layout it should have."""


class RecipeError(DDCapError):
    """A setting that is unknown, of the wrong type, or at odds with another one."""


class CheckpointError(DDCapError):
    """A model or checkpoint that is missing, damaged, or made for another configuration."""


class TrainingError(DDCapError):
    """A training that cannot go on: it diverged, or its checkpoint cannot be written."""


class TrainingInterruptedError(DDCapError):
    """A training that a signal ended, after it was saved; `status` is the exit status that says so."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[TrainingInterruptedError], tuple[str, int]]:
        """What it is made from, for its way between processes: Python would keep the message only."""
        return type(self), (str(self), self.status)


class MissingExtraError(DDCapError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed; run: pip install 'ddcap[{extra}]'"
        )
        self._made_from = feature, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """As of `TrainingInterruptedError`."""
        return type(self), self._made_from


_REMEDIES = {
    "check the path": (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    "change the permissions, or choose another place": (errno.EACCES, errno.EPERM),
    "the disk is for reading only; choose another place": (errno.EROFS,),
    "make room": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "choose another name": (errno.EEXIST, errno.ENOTEMPTY),
    "open fewer files (data.workers, data.shards_mixed), or raise the limit (ulimit -n)": (
        errno.EMFILE,
        errno.ENFILE,
    ),
    "free memory": (errno.ENOMEM,),
    "check the disk": (errno.EIO,),
    "check the network": (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT),
    "choose another port": (errno.EADDRINUSE,),
}


def remedy(error: BaseException, otherwise: str = "try again") -> str:
    """What helps against an error of the operating system, by its number.

    Args:
        error: any; only an `OSError` has a number.
        otherwise: where nothing is known of the number, or there is none.
    """
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return "check the network"
    number = error.errno if isinstance(error, OSError) else None
    if number is None:  # of a library that raises Python's classes itself
        kinds = {
            FileNotFoundError: errno.ENOENT,
            PermissionError: errno.EACCES,
            FileExistsError: errno.EEXIST,
        }
        number = next((code for kind, code in kinds.items() if isinstance(error, kind)), None)
    return next((words for words, numbers in _REMEDIES.items() if number in numbers), otherwise)
