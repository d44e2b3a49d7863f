"""Images and tar files on object storage, by the file systems that Ray Data uses: pyarrow's."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from ddcap.bulk.tar_input import LARGEST_MEMBER, is_tar
from ddcap.data.images import EXTENSIONS, EncodedImage
from ddcap.errors import DataError, ImageError, MissingExtraError


def is_remote(name: str) -> bool:
    """Return True for an address, as s3://bucket/folder."""
    return "://" in name


def expand(url: str) -> Iterator[str]:
    """The addresses of the images and tar files that an address names: a file, a folder, or a pattern.

    Args:
        url: s3://, gs:// or whatever pyarrow opens; `*` stands for any part of names, as a shell has it.

    Raises:
        DataError: if it cannot be listed, or names nothing.
        MissingExtraError: if pyarrow is not installed.
    """
    from_uri, selector, file_type = _pyarrow()
    scheme = url.partition("://")[0]
    plain, _, options = url.partition("?") if "*" not in url else (url, "", "")
    parts = plain.split("/")
    fixed = next((place for place, part in enumerate(parts) if "*" in part), len(parts))
    count = 0
    try:
        files, root = from_uri("/".join(parts[:fixed]) + (f"?{options}" if options else ""))
        pattern = "/".join([root, *parts[fixed:]])
        found = files.get_file_info(root)
        if found.type == file_type.File:
            infos = [found]
        else:
            infos = files.get_file_info(selector(root, recursive=True))
        for info in infos:
            is_match = pattern == root or _matches(info.path, pattern)
            is_wanted = is_tar(info.path) or PurePosixPath(info.path).suffix.lower() in EXTENSIONS
            if info.type == file_type.File and is_match and (is_wanted or found is info):
                count += 1
                yield f"{scheme}://{info.path}" + (f"?{options}" if options else "")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{url}: cannot be listed ({_reason(error)}); check the address and your permissions"
        ) from None
    if not count:
        raise DataError(f"{url}: matches no image and no tar file; check the address")


def open_remote(url: str) -> BinaryIO:
    """An open file that can seek.

    Raises:
        OSError: if it cannot be read.
    """
    from_uri, _, _ = _pyarrow()
    files, path = from_uri(url)
    return cast(BinaryIO, files.open_input_file(path))


def read_image(url: str) -> EncodedImage:
    """An image's bytes.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        with open_remote(url) as file:
            content = file.read(LARGEST_MEMBER + 1)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{url}: cannot be read ({_reason(error)}); check the address and your permissions"
        ) from None
    if len(content) > LARGEST_MEMBER:
        raise ImageError(f"{url}: is larger than {LARGEST_MEMBER:,} bytes; shrink it")
    return EncodedImage(url, content)


def _matches(path: str, pattern: str) -> bool:
    """By parts, so that `*` does not reach into folders."""
    names, patterns = path.split("/"), pattern.split("/")
    pairs = zip(names, patterns, strict=False)
    return len(names) == len(patterns) and all(fnmatch.fnmatchcase(*pair) for pair in pairs)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _pyarrow() -> tuple[Any, Any, Any]:
    try:
        import pyarrow.fs
    except ImportError:
        raise MissingExtraError("reading from object storage", "ray") from None
    return pyarrow.fs.FileSystem.from_uri, pyarrow.fs.FileSelector, pyarrow.fs.FileType
