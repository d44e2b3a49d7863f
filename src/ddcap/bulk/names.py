"""Names of images: one image is one name, however it is spelled."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

_IN_TAR = re.compile(r"\.tar/", re.IGNORECASE | re.ASCII)
_URI = "file://"


class ImageNames:
    """Names of images in an output.

    Args:
        base: the folder that relative names of its rows start from.
    """

    def __init__(self, base: str) -> None:
        self._base, self._here = base, os.getcwd()

    def key(self, name: str) -> str:
        """The same for all spellings of an image: by its folder's real path. Addresses stay as they are.

        A link that is an image keeps its own name. `name` can be a member of a tar file: `x.tar/member`.
        """
        if "://" in name:
            return name
        path = tar_of(name) or name
        member = name[len(path) :]
        folder, own = os.path.split(path)
        return os.path.join(_real_folder(os.path.join(self._base, folder)), own) + member

    def for_row(self, name: str) -> str:
        """A name of this process, as the rows have it: absolute if it would start from another folder."""
        return name if "://" in name or self._here == self._base else os.path.join(self._here, name)


def tar_of(name: str) -> str | None:
    """The tar file that an image is in, as it is named; None if it is in none."""
    found = _IN_TAR.search(name)
    return None if found is None else name[: found.end() - 1]


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def printable(text: str) -> str:
    r"""Text as one line of UTF-8: a line break as \n, a byte that no character has as \xff."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python holds a byte of a name that it cannot decode
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


# Where only UTF-8 can stand, the few names that are none are file URIs: any program can read those.


def to_text(name: str, base: str) -> str:
    """A name as UTF-8: itself, or the file URI of a name with other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return _URI + quote(os.fsencode(os.path.join(base, name)))
    return name


def from_text(text: str) -> str:
    """The name that `to_text` was given, or its absolute path."""
    if not text.startswith(_URI):
        return text
    content = unquote_to_bytes(text.removeprefix(_URI))
    try:
        content.decode()
    except UnicodeDecodeError:
        return os.fsdecode(content)
    return text  # an address of an object storage
