"""Caption images as they are found, and write each caption as it comes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddcap.bulk.names import ImageNames
from ddcap.bulk.output import CaptionOutput, Row
from ddcap.bulk.sidecars import Beside, Sidecars
from ddcap.bulk.tar_input import is_tar, tar_images, tar_members
from ddcap.bulk.walk import Links, SeenNames, walk
from ddcap.bulk.workers import Workers
from ddcap.captioner import Captioner
from ddcap.data.images import ImageSource
from ddcap.decoding.caption import answer_of
from ddcap.decoding.stream import fastest_batch
from ddcap.errors import DataError, DDCapError, remedy


@dataclass
class Progress:
    """The progress of a job.

    Attributes:
        captioned: images with a caption now, or with a reason why there is none.
        failed: images that cannot be read, folders and tar files.
        skipped: images that were done before.
        kept: files beside images that were there, of whomever, and stay as they are.
        started: seconds on a clock that only runs on.
    """

    captioned: int = 0
    failed: int = 0
    skipped: int = 0
    kept: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Names that were walked over."""
        return self.captioned + self.failed + self.skipped

    @property
    def rate(self) -> float:
        """Images a second, since the start."""
        return (self.captioned + self.failed) / max(1e-9, time.monotonic() - self.started)


class Job:
    """A job: the images that are done, and what becomes of each image, whoever captions it.

    Args:
        output: takes a row for each image.
        beside: also write each caption beside its image.
        overwrite: also where there is one.
        options: of the captions; a job that goes on with what is there has the same ones.
        on_progress: told after each image.
        on_failure: told of each image, folder and tar file that failed, in one line with the reason.
    """

    def __init__(
        self,
        output: CaptionOutput | None,
        beside: Sequence[Beside] = (),
        *,
        overwrite: bool = False,
        options: Mapping[str, Any] = MappingProxyType({}),
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.progress = Progress()
        self._output, self._beside, self._overwrite, self._options = output, beside, overwrite, options
        self._on_progress, self._on_failure = on_progress, on_failure
        self.names = ImageNames(os.getcwd()) if output is None else output.names
        self.seen = SeenNames(self.names.key)

    def begin(self) -> None:
        """Prepare the outputs; nothing is changed before.

        Raises:
            DataError: if they were made with other options, or another job writes there.
            OSError: if they cannot be written.
        """
        places: dict[str, Any] = {}
        for one in self._beside:
            one.begin({**self._options, **one.options}, overwrite=self._overwrite)
            places |= one.options
        if self._output is not None:
            self._output.begin({**self._options, **places})
            self.seen = self._output.done

    def images(self, paths: Iterable[str | Path], links: Links) -> Iterator[ImageSource]:
        """Begin, then what is still to be captioned of files, folders and tar files, in flat memory."""
        self.begin()
        for path in self.walk(paths, links):
            if not is_tar(path):
                if self.wants_file(path):
                    yield path
            elif not self.is_complete(str(path)):
                yield from self._tar_images(path)

    def walk(self, paths: Iterable[str | Path], links: Links) -> Iterator[Path]:
        """The files that are named or in folders."""
        return walk(paths, links=links, on_problem=self.problem, on_read=self.resolve)

    def _tar_images(self, tar: Path) -> Iterator[ImageSource]:
        is_damaged = False

        def problem(name: str, reason: str) -> None:
            nonlocal is_damaged
            is_damaged |= name == str(tar)
            self.problem(name, reason)

        try:
            with tar.open("rb") as file:
                yield from tar_images(file, str(tar), is_wanted=self.wants, on_problem=problem)
        except OSError as error:
            problem(str(tar), f"cannot be read ({error.strerror or error}); {remedy(error)}")
        if not is_damaged:
            self.resolve(tar)

    def wants_file(self, path: Path) -> bool:
        """Return True for an image still to be captioned; asked once of each."""
        for one in self._beside:
            try:
                one.check(path)
            except DataError as error:
                if self._is_new(str(path)):
                    self._fail(str(path), str(error))
                return False
        if self._beside and self._output is None and not self._overwrite and self._is_all_beside(path):
            self.progress.kept += self._is_new(str(path)) * len(self._beside)
            return False
        return self.wants(str(path))

    def _is_all_beside(self, path: Path) -> bool:
        """Return True if everything that is to be beside an image is there."""
        return all(one.is_done(path) for one in self._beside)

    def wants(self, name: str) -> bool:
        """The same, of an image that is known by its name only."""
        is_new = self._is_new(name)
        self.progress.skipped += not is_new
        return is_new

    def _is_new(self, name: str) -> bool:
        return self.seen.add(self.names.for_row(name))

    def is_complete(self, tar: str) -> bool:
        """Return True for a tar file that need not be read."""
        count = None if self._output is None else self._output.complete(tar)
        self.progress.skipped += count or 0
        return count is not None

    def problem(self, name: str | Path, reason: str) -> None:
        """Take a row of a folder, link or file that is no image that could be read."""
        if self._is_new(str(name)):
            self._fail(str(name), f"{name}: {reason}")

    def resolve(self, name: str | Path) -> None:
        """A folder or tar file can be read: if it could not be before, that row is out of date."""
        if self._output is not None:
            self._output.resolve(self.names.for_row(str(name)))

    def take(self, source: ImageSource, row: Row) -> None:
        """Write what became of an image."""
        caption = row.get("caption")
        error = row.get("error")
        if caption and self._beside:
            error = self._write_beside(Path(str(source)), caption)
        if error is None and self._output is not None:
            try:
                self._output.write({"image": self.names.for_row(str(source)), **row}, source)
            except DataError as refusal:
                error = str(refusal)
        if error is None:
            self.progress.captioned += 1
            self._on_progress(self.progress)
        else:
            self._fail(str(source), error, caption)

    def _write_beside(self, image: Path, caption: str) -> str | None:
        """Write the sidecars of an image; return why that failed, or None."""
        for one in self._beside:
            try:
                is_written = one.write(image, caption, overwrite=self._overwrite)
                self.progress.kept += not is_written
            except OSError as error:
                return f"{image}: its caption cannot be written ({error.strerror or error}); {remedy(error)}"
            except DDCapError as error:
                return str(error)
        return None

    def _fail(self, name: str, error: str, guess: str | None = None) -> None:
        """Take a row with an error; a caption that has no place is a guess there."""
        if self._output is not None:
            row = {"image": self.names.for_row(name), **({"guess": guess} if guess else {}), "error": error}
            self._output.write(row)
        self.progress.failed += 1
        self._on_failure(error)
        self._on_progress(self.progress)

    def finish(self) -> Progress:
        """All images have come."""
        if self._output is not None:
            self._output.finish()
        return self.progress

    def close(self) -> None:
        """Let other jobs write beside these images; who has opened `output` closes it."""
        for one in self._beside:
            one.close()


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
    workers: Workers | None = None,
    model: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_failure: Callable[[str], None] = lambda _: None,
    **asked: Any,
) -> Progress:
    """Caption files, the images in folders and in tar files, in flat memory; each named image once.

    Images that `output` has a row of, or that have a sidecar, are left out, so that a job which was killed
    goes on where it was. An image that cannot be read gets a row with its error, and the others go on; the
    next job tries it again. What is beside an image stays as it is, whoever wrote it.

    Args:
        captioner: of the model.
        paths: of files, folders and tar files.
        output: takes a row for each image.
        sidecar: "txt" or "xmp": also write the caption beside each image.
        beside: more that is written for each image, for instance `DescribedCopies`.
        overwrite: write what is beside images anew.
        links: see `walk`.
        min_sure: leave out captions that the model is less sure of, with the reason.
        workers: caption in these processes, unless all images are a single unit of theirs. The captions are
            the same (of PyTorch models up to rounding, which depends on the number of threads).
        model: what tells it from others, for instance its name; noted in the output with the options.
        on_progress: told after each image.
        on_failure: told of each image, folder and tar file that failed, in one line with the reason.
        asked: see `Captioner.caption_each`.

    Raises:
        DDCapError: if the captions cannot be as they are asked to be, or the output was made with other
            options.
        OSError: if `output` cannot be written.
    """
    beside = [*beside, *([] if sidecar is None else [Sidecars(sidecar)])]
    options = {**model, **asked, "min_sure": min_sure}
    job = Job(
        output,
        beside,
        overwrite=overwrite,
        options=options,
        on_progress=on_progress,
        on_failure=on_failure,
    )
    try:
        images = job.images(paths, links)
        with closing(_rows(captioner, images, workers, asked, min_sure)) as rows:
            for source, row in rows:
                job.take(source, row)
        return job.finish()
    finally:
        job.close()


def _rows(
    captioner: Captioner,
    images: Iterator[ImageSource],
    workers: Workers | None,
    asked: Mapping[str, Any],
    min_sure: float | None,
) -> Generator[tuple[ImageSource, Row], None, None]:
    """Each image with what becomes of it, in order."""
    if workers is not None:
        list(captioner.caption_each([], **asked))  # refuses what cannot be, before anything is started
        batch_size = asked.get("batch_size") or fastest_batch(captioner.model)
        size = workers.unit_size(batch_size)
        first = list(itertools.islice(images, size + 1))
        images = itertools.chain(first, images)
        if len(first) > size:
            yield from workers.rows(images, asked, min_sure, batch_size=batch_size)
            return
    for result in captioner.caption_each(images, **asked):
        yield result.source, answer_of(result, min_sure)


def count_images(paths: Iterable[str | Path], links: Links) -> int:
    """Count the images that `caption_files` would find; only names are read."""
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
