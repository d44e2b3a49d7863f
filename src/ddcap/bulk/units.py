"""Captions in another process: the model that it loads, and the rows that it gives back.

The workers of this machine and the actors of Ray each hold a `UnitCaptioner`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from ddcap.bulk.output import Row
from ddcap.captioner import Captioner
from ddcap.data.images import ImageSource
from ddcap.decoding.caption import answer_of

ModelArguments = Sequence[Any]
"""Arguments of `Captioner.from_pretrained`: model, device, precision, runtime, and whether CUDA graphs."""


class UnitCaptioner:
    """Captions units: a few images at a time, given from elsewhere.

    Args:
        model: of the captioner, which is loaded once.
        asked: see `Captioner.caption_each`.
        min_sure: see `caption_files`.
    """

    def __init__(self, model: ModelArguments, asked: Mapping[str, Any], min_sure: float | None) -> None:
        self._captioner = Captioner.from_pretrained(*cast(Any, model))
        self._asked, self._min_sure = asked, min_sure

    def rows(self, images: Iterable[ImageSource], **changes: Any) -> Iterator[tuple[ImageSource, Row]]:
        """Caption each image; `changes` replace what is asked for."""
        for result in self._captioner.caption_each(images, **{**self._asked, **changes}):
            yield result.source, answer_of(result, self._min_sure)
