"""Caption pictures as they are found, and write each caption as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddcap.bulk.beside import Beside, Sidecars
from ddcap.bulk.outputs import CaptionOutput, Row
from ddcap.bulk.tar_input import is_tar, tar_members, tar_pictures
from ddcap.bulk.walk import Links, SeenNames, walk
from ddcap.captioner import Captioner
from ddcap.data.images import ImageSource
from ddcap.decoding.caption import answer_of
from ddcap.errors import DDCapError, remedy


@dataclass
class Progress:
    """How far a job is.

    Attributes:
        captioned: pictures with a caption now, or with a reason why there is none.
        failed: pictures that cannot be read, folders and tar files.
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


class Job:
    """What is done, and what becomes of each picture, whoever captions it.

    Args:
        output: takes a row for each picture.
        beside: also write each caption beside its picture.
        overwrite: also where there is one.
        on_progress: told after each picture.
    """

    def __init__(
        self,
        output: CaptionOutput | None,
        beside: Sequence[Beside] = (),
        *,
        overwrite: bool = False,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.progress = Progress()
        self.seen = output.done if output is not None else SeenNames()
        self._output, self._beside, self._overwrite = output, beside, overwrite
        self._on_progress = on_progress

    def pictures(self, paths: Iterable[str | Path], links: Links) -> Iterator[ImageSource]:
        """What is still to be captioned of files, folders and tar files, in flat memory."""
        for path in walk(paths, links=links, on_problem=self.problem):
            if not is_tar(path):
                if self.wants_file(path):
                    yield path
            elif not self.is_complete(str(path)):
                try:
                    with path.open("rb") as file:
                        wants, problem = self.wants, self.problem
                        yield from tar_pictures(file, str(path), is_wanted=wants, on_problem=problem)
                except OSError as error:
                    self.problem(path, f"cannot be read ({error.strerror or error}); {remedy(error)}")

    def wants_file(self, path: Path) -> bool:
        """Whether a picture is still to be captioned; asked once of each."""
        is_beside = self._beside and all(one.is_done(path) for one in self._beside)
        if is_beside and self._output is None and not self._overwrite:
            self.progress.skipped += 1
            return False
        return self.wants(str(path))

    def wants(self, name: str) -> bool:
        """The same, of a picture that is known by its name only."""
        is_new = self.seen.add(name)
        self.progress.skipped += not is_new
        return is_new

    def is_complete(self, tar: str) -> bool:
        """Whether a tar file need not be read."""
        count = None if self._output is None else self._output.complete(tar)
        self.progress.skipped += count or 0
        return count is not None

    def problem(self, name: str | Path, reason: str) -> None:
        """Take a row of a folder, link or file that is no picture that could be read."""
        if self.seen.add(str(name)):
            self.progress.failed += 1
            if self._output is not None:
                self._output.write({"image": str(name), "error": f"{name}: {reason}"})

    def take(self, source: ImageSource, row: Row) -> None:
        """Write what became of a picture."""
        row = {"image": str(source), **row}
        if row.get("caption") and self._beside:
            try:
                for one in self._beside:
                    one.write(Path(str(source)), row["caption"])
            except OSError as error:
                row["error"] = f"{error.filename or source}: {error.strerror or error}; {remedy(error)}"
            except DDCapError as error:
                row["error"] = str(error)
        if self._output is not None:
            self._output.write(row, source)
        self.progress.captioned += "error" not in row
        self.progress.failed += "error" in row
        self._on_progress(self.progress)

    def finish(self) -> Progress:
        """All pictures have come."""
        if self._output is not None:
            self._output.finish()
        return self.progress


def caption_files(
    captioner: Captioner,
    paths: Iterable[str | Path],
    *,
    output: CaptionOutput | None = None,
    sidecar: str | None = None,
    beside: Sequence[Beside] = (),
    overwrite: bool = False,
    links: Links = "skip",
    min_sure: float | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **asked: Any,
) -> Progress:
    """Caption files, the pictures in folders and in tar files, in flat memory; each named picture once.

    Pictures that `output` has a row of, or that have a sidecar, are left out, so that a job which was killed
    goes on where it was. A picture that cannot be read gets a row with its error, and the others go on.

    Args:
        captioner: of the model.
        paths: of files, folders and tar files.
        output: takes a row for each picture.
        sidecar: "txt" or "xmp": also write the caption beside each picture.
        beside: more that is written for each picture, for instance `DescribedCopies`.
        overwrite: write what is beside pictures anew.
        links: see `walk`.
        min_sure: leave out captions that the model is less sure of, with the reason.
        on_progress: told after each picture.
        asked: see `Captioner.caption_each`.

    Raises:
        DDCapError: if the captions cannot be as they are asked to be.
        OSError: if `output` cannot be written.
    """
    beside = [*beside, *([] if sidecar is None else [Sidecars(sidecar)])]
    job = Job(output, beside, overwrite=overwrite, on_progress=on_progress)
    for result in captioner.caption_each(job.pictures(paths, links), **asked):
        job.take(result.source, answer_of(result, min_sure))
    return job.finish()


def count_pictures(paths: Iterable[str | Path], links: Links) -> int:
    """How many pictures `caption_files` would find; only names are read."""
    count = 0
    for path in walk(paths, links=links, on_problem=lambda *_: None):
        if not is_tar(path):
            count += 1
            continue
        try:
            with path.open("rb") as file:
                count += sum(1 for _ in tar_members(file, str(path), lambda *_: None))
        except OSError:
            continue  # told when its turn comes
    return count
