"""Copies of shards that are not on this disk, in a folder that is this cache's own.

The folder is made here, or was empty, and carries a marker since. Nothing is deleted but the copies, which
are named by a digest of their address.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

from ddcap.errors import DataError
from ddcap.files import remove_unfinished, replacing

_MARKER = ".ddcap_shard_cache"
_COPY = re.compile(r"[0-9a-f]{16}\.tar")
_ATTEMPTS = 3


def local_path(url: str) -> Path | None:
    """Where a shard, or a folder of them, lies on this disk; None if it is elsewhere."""
    protocol, _ = fsspec.core.split_protocol(url)
    if protocol in ("file", "local"):
        return Path(fsspec.core.url_to_fs(url)[1])
    return Path(url) if protocol is None else None


class ShardCache:
    """A folder of copies; several processes may share it.

    Args:
        folder: new, empty, or of an earlier cache.

    Raises:
        DataError: if it holds anything else, or cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # who finds something in the folder finds the marker too, if it is a cache: that is the first file
            if any(self.folder.iterdir()) and not (self.folder / _MARKER).exists():
                raise DataError(
                    f"{folder}: holds files that are not copies of shards; set data.shard_cache to a new or "
                    "empty folder"
                )
            (self.folder / _MARKER).touch()
        except OSError as error:
            raise DataError(
                f"{folder}: cannot hold copies of shards ({error.strerror}); change data.shard_cache"
            ) from None
        remove_unfinished(self.folder)

    def fetch(self, url: str) -> Path:
        """The copy of a shard, made if there is none.

        Args:
            url: whatever `fsspec` opens (http, s3, gs, hf, ...).

        Raises:
            DataError: if it cannot be read after some attempts.
        """
        copy = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
        reason: Exception | None = None
        for _ in range(_ATTEMPTS):
            if copy.exists():
                os.utime(copy)  # for `make_room`: just used
                return copy
            try:
                with (
                    fsspec.open(url, "rb") as source,
                    replacing(copy) as temporary,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
            except (
                OSError,
                ImportError,
                ValueError,
            ) as error:  # ImportError: a protocol's package is missing
                reason = error
        raise DataError(f"{url}: cannot be read ({reason}); check the address and your rights") from None

    def make_room(self, keep: int) -> None:
        """Delete all but the `keep` copies used last; who still reads one keeps what it has open."""
        used: list[tuple[float, Path]] = []
        for path in self.folder.iterdir():
            if not _COPY.fullmatch(path.name):
                continue
            try:
                used.append((path.stat().st_mtime, path))
            except OSError:
                continue  # another process was faster
        for _, path in sorted(used, reverse=True)[keep:]:
            path.unlink(missing_ok=True)
