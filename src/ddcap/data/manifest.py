"""What a folder of shards holds, so that an epoch can be planned without opening one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from ddcap.data.shard_cache import local_path
from ddcap.data.shard_file import ShardFile
from ddcap.errors import DataError
from ddcap.files import write_text

NAME = "manifest.json"
_FORMAT = "ddcap-shards-1"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        url: a path, or what `fsspec` opens.
        captions: (samples,) number of captions of every sample, in the order of the file.
    """

    url: str
    captions: NDArray[np.int64]


class SampleNumbers:
    """Samples counted through all shards.

    Args:
        shards: in order.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.starts = np.cumsum([0, *(len(shard.captions) for shard in shards)])

    def locate(self, number: int) -> tuple[int, int]:
        """The shard that holds a sample, and the sample's place in it."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])


def read_manifest(
    source: str, progress: Callable[[Sequence[Path], int], Iterable[Path]] = lambda items, _: items
) -> list[Shard]:
    """The shards of a folder or URL.

    A local folder of tar files without a manifest, as `img2dataset` leaves it, is indexed once and gets one.

    Args:
        source: folder or URL.
        progress: wraps the tar files to be indexed; its second argument is their number.

    Raises:
        DataError: if there is no manifest, or it is damaged.
    """
    folder = local_path(source)
    source = source.rstrip("/") if folder is None else str(folder)
    if folder is not None and not (folder / NAME).is_file():
        return _index(folder, progress)
    try:
        with fsspec.open(f"{source}/{NAME}", "rt", encoding="utf-8") as file:
            values = json.load(file)
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']!r}")
        return [
            Shard(f"{source}/{entry['name']}", np.asarray(entry["captions"], dtype=np.int64))
            for entry in values["shards"]
        ]
    except (OSError, ImportError) as error:
        raise DataError(
            f"{source}/{NAME}: cannot be read ({error}); write shards by 'ddcap data shard', or index a copy "
            "of the folder on this disk"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}/{NAME}: damaged ({error}); delete it and index the folder again") from None


def write_manifest(folder: Path, counts: dict[str, list[int]], **more: Any) -> None:
    """Write a manifest for the tar files named in `counts`, with their captions per sample."""
    entries = [{"name": name, "captions": captions} for name, captions in sorted(counts.items())]
    write_text(folder / NAME, json.dumps({"format": _FORMAT, **more, "shards": entries}))


def _index(folder: Path, progress: Callable[[Sequence[Path], int], Iterable[Path]]) -> list[Shard]:
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder}: has no {NAME} and no tar files; write shards by 'ddcap data shard'")
    counts: dict[str, list[int]] = {}
    for path in progress(paths, len(paths)):
        shard = ShardFile(path)
        counts[path.name] = shard.caption_counts()
        shard.close()
    write_manifest(folder, counts)
    return [Shard(str(path), np.asarray(counts[path.name], dtype=np.int64)) for path in paths]
