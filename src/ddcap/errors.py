"""Errors for users. Each message is one line with the thing, the reason and the remedy."""

from __future__ import annotations

import errno
import socket


class DDCapError(ValueError):
    """Base of all errors for users. The command line prints the message without a traceback."""


class ImageError(DDCapError):
    """An image is missing, unreadable, truncated, too large or too small."""


class DataError(DDCapError):
    """A file of a data set is missing or has the wrong format."""


class RecipeError(DDCapError):
    """A setting is unknown, has the wrong type, or conflicts with another one."""


class CheckpointError(DDCapError):
    """A model or checkpoint is missing, damaged, or from another configuration."""


class TrainingError(DDCapError):
    """Training cannot continue: it diverged, or a checkpoint cannot be written."""


class TrainingInterruptedError(DDCapError):
    """A signal stopped the training, after its state was saved. `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[TrainingInterruptedError], tuple[str, int]]:
        """Keep `status` when the error is pickled; Python would keep the message only."""
        return type(self), (str(self), self.status)


class MissingExtraError(DDCapError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed; run: pip install 'ddcap[{extra}]' "
            f"(in a clone: '.[{extra}]')"
        )
        self._made_from = feature, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """See `TrainingInterruptedError`."""
        return type(self), self._made_from


_REMEDIES = {
    "check the path": (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    "change the permissions, or choose another path": (errno.EACCES, errno.EPERM),
    "the disk is read-only; choose another path": (errno.EROFS,),
    "free disk space": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
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
    """The remedy for an error of the operating system, by its number.

    Args:
        error: any error; only an `OSError` has a number.
        otherwise: remedy for an unknown number, or an error without one.
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
