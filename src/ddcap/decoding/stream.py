"""Many images through a model: read ahead, a few at a time, on all cores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddcap.data.sources import ImageSource, is_one_image, taken
from ddcap.decoding.allowed_tokens import Vocabulary
from ddcap.decoding.caption import ImageResult
from ddcap.decoding.generate import CaptionRequest, PixelsOrError
from ddcap.errors import ImageError
from ddcap.machine import ahead, own_cores
from ddcap.model.features import PreparedImages
from ddcap.values import as_whole

_MOST_PREPARING = 16  # each holds a batch

_Numbered = tuple[int, Sequence[ImageSource]]


@dataclass(frozen=True)
class StreamPart:
    """Some images of a longer stream; they get the captions that they would get there.

    Attributes:
        images: whole batches of the stream.
        first_batch: number of the first one.
    """

    images: Sequence[ImageSource]
    first_batch: int

    def __iter__(self) -> Iterator[ImageSource]:
        return iter(self.images)


def fastest_batch(model: Any) -> int:
    """Number of images of a batch of a model, where none is asked for."""
    return 4 if _is_onnx(model) else 16


def caption_stream(
    asked: CaptionRequest,
    model: Any,
    images: ImageSource | Iterable[ImageSource],
    pixels: Callable[[ImageSource, str], np.ndarray],
    computing: Callable[[], AbstractContextManager[Any]],
    vocabulary: Vocabulary,
    *,
    batch_size: int | None,
    seed: int,
) -> Iterator[ImageResult]:
    """One result for each image, in order; of images from any iterable, a few are held at a time.

    Args:
        asked: of every image.
        model: in evaluation mode; ONNX graphs compute several batches side by side.
        images: the images, or one.
        pixels: reads one, which has the given name where it has none of its own.
        computing: makes the context of a forward pass.
        vocabulary: of the model's tokenizer.
        batch_size: images of a batch; None takes the fastest.
        seed: of the decoders that draw.

    Raises:
        DDCapError: if a number is wrong.
        ImageError: if `images` are neither images nor one image.
    """
    is_onnx = _is_onnx(model)
    size = fastest_batch(model) if batch_size is None else as_whole("batch_size", batch_size, 1)
    seed = as_whole("seed", seed, 0)
    several: Iterable[Any] = [images] if is_one_image(images) else images  # type: ignore[assignment]
    if not isinstance(several, Iterable):
        taken(several)  # says what is wrong with it
    count = len(several) if isinstance(several, Sized) else None
    first_batch = images.first_batch if isinstance(images, StreamPart) else 0
    coming = iter(several)  # a few at a time, even of a million names
    parts = enumerate(iter(lambda: list(itertools.islice(coming, size)), []), first_batch)
    is_bulk = is_onnx and not (count is not None and count <= size)
    model = model.for_bulk() if is_bulk else model

    def read(numbered: _Numbered) -> list[PixelsOrError]:
        first = size * numbered[0] + 1
        names = ["image"] if count == 1 else [f"image {first + at}" for at in range(len(numbered[1]))]
        return [_read(image, name, pixels) for image, name in zip(numbered[1], names, strict=True)]

    def prepare(numbered: _Numbered) -> tuple[list[PixelsOrError], PreparedImages | None]:
        found = read(numbered)
        pixels = [one for one in found if isinstance(one, np.ndarray)]
        return found, model.prepare(np.stack(pixels)) if pixels and not is_onnx else None

    def caption(
        numbered: _Numbered, found: list[PixelsOrError], prepared: PreparedImages | None = None
    ) -> list[ImageResult]:
        number, part = numbered
        generator = np.random.default_rng([seed, number])  # independent of the thread and the order
        with computing():
            features = None if prepared is None else model.encode_prepared(prepared)
            return asked.results(model, part, found, vocabulary, generator, features)

    if is_bulk:  # each core computes its own batches
        for _, results in ahead(lambda numbered: caption(numbered, read(numbered)), parts):
            yield from results
        return
    # what the CPU does for the next batches, while the device is at work on this one
    for numbered, (found, prepared) in ahead(prepare, parts, workers=_preparing_threads(str(model.device))):
        yield from caption(numbered, found, prepared)


def _preparing_threads(device: str) -> int:
    """Number of threads that read images and prepare batches; the CPU also computes, if it is the device."""
    return 1 if device == "cpu" else min(own_cores(), _MOST_PREPARING)


def _is_onnx(model: Any) -> bool:
    return getattr(model, "runtime", "torch") == "onnx"


def _read(image: ImageSource, name: str, pixels: Callable[[ImageSource, str], np.ndarray]) -> PixelsOrError:
    try:
        return pixels(image, name)
    except ImageError as error:
        return error
