"""A disk cache of a frozen encoder's features, so that an epoch does not run the encoder again.

One safetensors file holds SHARD_SIZE images with all their views, in float16. A file's name is a digest of
everything its content depends on (encoder, preprocessing, views, images by name, size and time of change).
It is written under another name and then renamed, so that a half-written file is never read and an
interrupted build goes on where it stopped. A file damaged later is computed again. An image that cannot be
read is left out, with the reason in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddcap.data.images import Preprocessing, load_image
from ddcap.errors import DataError, ImageError, remedy
from ddcap.files import remove_unfinished, replacing
from ddcap.machine import computing

logger = logging.getLogger("ddcap")

SHARD_SIZE = 64


class Encoder(Protocol):
    """The interface that the cache needs of an image encoder."""

    preprocessing: Preprocessing

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""

    @property
    def cache_key(self) -> str:
        """Changes with the weights."""

    def __call__(self, pixels: Tensor) -> Any:
        """Pixels (B, 3, H, W) to an object with `memory` (B, P, C) and `summary` (B, S)."""


def view_pixels(path: Path, view: int, preprocessing: Preprocessing, seed: object = 0) -> Tensor:
    """Pixels (3, H, W) of one training view: 0 plain, 1 mirrored, 2 and up random crops, half mirrored.

    The view is a pure function of the arguments.
    """
    return image_view(load_image(path), path.name, view, preprocessing, seed)


def image_view(
    image: Image.Image, name: str, view: int, preprocessing: Preprocessing, seed: object = 0
) -> Tensor:
    """The same of an image that is open already."""
    if view == 0:
        return torch.from_numpy(preprocessing(image))
    generator = random.Random(f"{seed}/{name}/{view}")
    mirror = view == 1 or generator.random() < 0.5
    return torch.from_numpy(preprocessing.augment(image, generator, mirror=mirror, crop=view > 1))


class FeatureCache:
    """Features of a fixed list of images on disk, read one view at a time.

    Args:
        folder: where the shards lie; made if missing.
        encoder: a frozen image encoder.
        paths: the images, in the order that `read` counts them.
        views: views per image, see `view_pixels`.
        progress: wraps an iterable of shards still to be computed.
        bf16: compute in mixed precision: several times as fast where the processor knows bfloat16.
        share: index and number of the processes that build the cache together: each begins elsewhere and
            passes over what another has finished.

    Raises:
        DataError: if an image is missing, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: Encoder,
        paths: Sequence[Path],
        views: int = 1,
        progress: Callable[[list[int]], Iterable[int]] = iter,
        *,
        bf16: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be created ({error.strerror}); change data.cache") from None
        remove_unfinished(self.folder)
        shards = [list(paths[start : start + SHARD_SIZE]) for start in range(0, len(paths), SHARD_SIZE)]
        about = f"{encoder.cache_key}|{encoder.preprocessing}|{views}|{'bf16' if bf16 else 'float32'}"
        self._files = [self.folder / f"{_shard_key(about, shard)}.safetensors" for shard in shards]
        missing = [number for number, file in enumerate(self._files) if not _is_whole(file)]
        first = len(missing) * share[0] // share[1]
        for number in progress(missing[first:] + missing[:first]):
            if share[1] == 1 or not self._files[number].exists():
                _write_shard(self._files[number], encoder, shards[number], views, bf16)
        self._open: dict[int, Any] = {}

    def read(self, index: int, view: int, seed: object = 0) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Memory (P, C) and summary (S,) of one image, float16; the same whatever the seed.

        Raises:
            ImageError: if the image could not be read when the cache was made.
            DataError: if the file was removed or damaged since the start.
        """
        number, row = divmod(index, SHARD_SIZE)
        memory, summary, unreadable, _ = self._opened(number)
        if str(row) in unreadable:
            raise ImageError(unreadable[str(row)])
        return memory[row, view], summary[row, view]

    def blank(self) -> tuple[Tensor, Tensor]:
        """Memory (P, C) and summary (S,) of no image."""
        memory, summary, *_ = self._opened(0)
        return torch.zeros_like(memory[0, 0]), torch.zeros_like(summary[0, 0])

    def _opened(self, number: int) -> Any:
        """A shard's slices of memory and summary, what could not be read, and the file's handle."""
        if number not in self._open:
            try:
                handle = safe_open(self._files[number], framework="pt")
            except (OSError, SafetensorError):
                raise DataError(
                    f"{self._files[number]}: was removed or damaged during the run; start again to rebuild it"
                ) from None
            unreadable = json.loads((handle.metadata() or {}).get("unreadable", "{}"))
            self._open[number] = (handle.get_slice("memory"), handle.get_slice("summary"), unreadable, handle)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes open the files themselves."""
        return {**self.__dict__, "_open": {}}


def _shard_key(about: str, paths: Sequence[Path]) -> str:
    hasher = hashlib.sha256(about.encode())
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            raise DataError(f"{path}: no such image; check data.root and data.images") from None
        hasher.update(f"|{path.name}|{state.st_size}|{state.st_mtime_ns}".encode())
    return hasher.hexdigest()[:24]


def _is_whole(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt"):
            return True  # opening compares the header with the length of the file
    except (OSError, SafetensorError):
        logger.warning("%s: damaged; encoding its images again", file)
        return False


@torch.inference_mode()
def _write_shard(file: Path, encoder: Encoder, paths: Sequence[Path], views: int, bf16: bool) -> None:
    memory, summary = [], []
    unreadable: dict[int, str] = {}
    for row, path in enumerate(paths):
        try:
            pixels = torch.stack([view_pixels(path, view, encoder.preprocessing) for view in range(views)])
        except ImageError as error:
            unreadable[row] = str(error)
            size = encoder.preprocessing.size
            pixels = torch.zeros(views, 3, size, size)  # a place holder: `read` never gives it away
        with computing(encoder.device, bfloat16=bf16):
            features = encoder(pixels.to(encoder.device))
        memory.append(features.memory.half().cpu())  # (views, P, C)
        summary.append(features.summary.half().cpu())  # (views, S)
    tensors = {"memory": torch.stack(memory), "summary": torch.stack(summary)}
    try:
        with replacing(file) as temporary:
            save_file(tensors, temporary, {"unreadable": json.dumps(unreadable)})
    except (OSError, SafetensorError) as error:
        reason, advice = " ".join(str(error).split()), remedy(error, "free disk space")
        raise DataError(f"{file}: cannot be written ({reason}); {advice}, or change data.cache") from None
