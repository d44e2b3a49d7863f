"""Caption pictures as they are found, and write each caption as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddcap.bulk.outputs import CaptionOutput, Row, sidecar_of, write_sidecar
from ddcap.bulk.walk import Links, SeenNames, walk
from ddcap.captioner import Captioner
from ddcap.decoding.caption import answer_of
from ddcap.errors import remedy


@dataclass
class Progress:
    """How far a job is.

    Attributes:
        captioned: pictures with a caption now, or with a reason why there is none.
        failed: pictures that cannot be read, and folders.
        skipped: pictures that were done before.
        started: seconds on a clock that only runs on.
    """

    captioned: int = 0
    failed: int = 0
    skipped: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Names that were walked over."""
        return self.captioned + self.failed + self.skipped

    @property
    def rate(self) -> float:
        """Pictures a second, since the start."""
        return (self.captioned + self.failed) / max(1e-9, time.monotonic() - self.started)


def caption_files(
    captioner: Captioner,
    paths: Iterable[str | Path],
    *,
    output: CaptionOutput | None = None,
    sidecar: str | None = None,
    overwrite: bool = False,
    links: Links = "skip",
    min_sure: float | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **asked: Any,
) -> Progress:
    """Caption files and the pictures in folders, in flat memory; a picture twice named is captioned once.

    Pictures that `output` has a row of, or that have a sidecar, are left out, so that a job which was killed
    goes on where it was. A picture that cannot be read gets a row with its error, and the others go on.

    Args:
        captioner: of the model.
        paths: of files and folders.
        output: takes a row for each picture.
        sidecar: "txt" or "xmp": also write the caption beside each picture.
        overwrite: write sidecars anew.
        links: see `walk`.
        min_sure: leave out captions that the model is less sure of, with the reason.
        on_progress: told after each picture.
        asked: see `Captioner.caption_each`.

    Raises:
        DDCapError: if the captions cannot be as they are asked to be.
        OSError: if `output` cannot be written.
    """
    progress, seen = Progress(), output.done if output is not None else SeenNames()

    def take(row: Row) -> None:
        if output is not None:
            output.write(row)

    def problem(path: Path, reason: str) -> None:
        if seen.add(str(path)):
            progress.failed += 1
            take({"image": str(path), "error": f"{path}: {reason}"})

    def wanted() -> Iterator[Path]:
        for path in walk(paths, links=links, on_problem=problem):
            is_done = sidecar is not None and not overwrite and sidecar_of(path, sidecar).exists()
            if is_done and output is None:
                progress.skipped += 1
            elif seen.add(str(path)):
                yield path
            else:
                progress.skipped += 1

    for result in captioner.caption_each(wanted(), **asked):
        row = {"image": str(result.source), **answer_of(result, min_sure)}
        if sidecar is not None and row.get("caption"):
            try:
                write_sidecar(Path(str(result.source)), sidecar, row["caption"])
            except OSError as error:
                reason = f"{error.filename or result.source}: {error.strerror or error}; {remedy(error)}"
                row = {**row, "error": reason}
        take(row)
        progress.captioned += "error" not in row
        progress.failed += "error" in row
        on_progress(progress)
    return progress
