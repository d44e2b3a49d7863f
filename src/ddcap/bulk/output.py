"""The interface of outputs, which take the captions of very many images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddcap.bulk.names import ImageNames
from ddcap.bulk.walk import SeenNames
from ddcap.data.images import ImageSource
from ddcap.errors import DataError

COLUMNS = ("image", "caption", "sure", "faithful", "known", "doubtful", "guess", "why", "error")
Row = Mapping[str, Any]


class CaptionOutput:
    """Takes rows, from one job at a time.

    Opening one changes nothing that is there; `begin` does.

    Attributes:
        names: how its rows name images.
        done: the images that it has a row without an error of.
    """

    names: ImageNames
    done: SeenNames

    def begin(self, options: Mapping[str, Any]) -> None:
        """Prepare for rows: cut off what a kill has torn, or remove what is there to begin anew.

        Args:
            options: of the captions.

        Raises:
            DataError: if what is there was made with others.
            OSError: if it cannot be written.
        """
        raise NotImplementedError

    def complete(self, tar: str) -> int | None:
        """Captions of a tar of images that need not be read again; None if it has to be."""
        del tar
        return None

    def write(self, row: Row, source: ImageSource | None = None, /) -> None:
        """Take a row; "image" names the image, `source` is it where there is one.

        Raises:
            DataError: if there is no place for it.
            OSError: if it cannot be written.
        """
        raise NotImplementedError

    def resolve(self, name: str) -> None:
        """A folder or tar file that may have a row with an error can be read now."""

    def finish(self) -> None:
        """All images have come."""

    def close(self) -> None:
        """Write what is left, and let other jobs have it."""
        raise NotImplementedError


def caption_count(options: Mapping[str, Any]) -> int:
    """Number of captions of each image."""
    lengths = options.get("lengths")
    return int(options.get("num") or 1) if lengths is None else len(lengths)


def not_ours(path: Path, why: str, *, overwrite: bool = True) -> DataError:
    """The refusal of what ddcap has not written.

    Args:
        path: of the output.
        why: what it is not.
        overwrite: whether that option would replace it.
    """
    remedy = "choose another file, or add --overwrite to replace it" if overwrite else "choose another folder"
    return DataError(f"{path}: {why}; {remedy}")
