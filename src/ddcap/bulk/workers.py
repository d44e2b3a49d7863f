"""Several processes of this machine caption; the one that started them reads names and writes rows.

Threads of one process wait for each other wherever Python itself works, and the more cores, the longer.

A unit is a few images in a row. An idle worker is given the next one. The rows come back whole, and are
passed on in the order of the images, so that an output is the same as of one process. Where a worker is
killed, another one is started and captions its unit again. A unit with which two workers have ended is cut
into images; an image with which yet another worker ends becomes a row with an error.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from ddcap.bulk.output import Row
from ddcap.bulk.units import ModelArguments, UnitCaptioner
from ddcap.data.images import EncodedImage, ImageSource
from ddcap.decoding.stream import StreamPart
from ddcap.errors import DDCapError
from ddcap.machine import own_cores, own_memory
from ddcap.values import as_whole

_UNIT = 16  # images, at least
_LARGEST = 16_000_000  # bytes of a unit's images out of tar files, about
_SPARE = 2  # units that are read before a worker is free
_MEMORY = 600_000_000  # bytes of a process with the default model and photographs of some size, about
_STARTS = 3  # workers in a row that end before they have loaded the model


@dataclass(eq=False)
class _Unit:
    """Images in a row, and what became of them.

    Attributes:
        images: at least one.
        first_batch: number of their first batch in the whole job.
        losses: workers that ended while they captioned them.
        rows: one for each; None until they have come.
        error: that the captioner raised behind these rows.
    """

    images: list[ImageSource]
    first_batch: int
    losses: int = 0
    rows: list[Row] | None = None
    error: BaseException | None = None


@dataclass(eq=False)
class _Worker:
    """A process with a model.

    Attributes:
        process: that runs `_work`.
        pipe: to it.
        unit: that it is at work on.
        is_ready: it has loaded the model.
    """

    process: Any
    pipe: Connection
    unit: _Unit | None = None
    is_ready: bool = False


@dataclass
class Workers:
    """Processes that caption; none runs yet.

    They are started as they are needed: `count` of them if there is work for so many. Where Python runs a
    script, that script needs `if __name__ == "__main__":`, see `multiprocessing`.

    Args:
        model: that each of them loads.
        count: processes.
        unit: images that a worker is given at once, at least; lost with it.

    Attributes:
        threads: of a worker; all workers together have as many as there are cores.
    """

    model: ModelArguments
    count: int
    unit: int = _UNIT
    _all: list[_Worker] = field(default_factory=list, init=False)
    _failed_starts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.count = as_whole("workers", self.count, 1)
        self.threads = max(1, own_cores() // self.count)

    def rows(
        self,
        images: Iterable[ImageSource],
        asked: Mapping[str, Any],
        min_sure: float | None,
        *,
        batch_size: int,
    ) -> Iterator[tuple[ImageSource, Row]]:
        """Each image with its row, in order; a few units are held at a time.

        Args:
            images: paths, or images of tar files.
            asked: see `Captioner.caption_each`.
            min_sure: see `caption_files`.
            batch_size: images of a batch; units are a multiple of it.

        Raises:
            DDCapError: if the captions cannot be as they are asked to be, or no worker can be started.
        """
        units = _units(images, batch_size, self.unit_size(batch_size))
        line: deque[_Unit] = deque()  # in order, until their rows are passed on
        waiting: deque[_Unit] = deque()  # those of them that no worker has
        try:
            while True:
                while line and line[0].rows is not None:
                    done = line.popleft()
                    yield from zip(done.images, done.rows or (), strict=False)
                    if done.error is not None:
                        raise done.error
                while len(waiting) < self._room() and len(line) < 2 * (self.count + _SPARE):
                    if (unit := next(units, None)) is None:
                        break
                    line.append(unit)
                    waiting.append(unit)
                    self._give(waiting, asked, min_sure, batch_size)
                if not line:
                    return
                self._give(waiting, asked, min_sure, batch_size)
                self._hear(line, waiting)
        finally:
            self._stop()

    def unit_size(self, batch_size: int) -> int:
        """Number of images of a unit: two batches for each thread of a worker, and at least `unit`."""
        return max(self.unit, 2 * self.threads * batch_size)

    def _room(self) -> int:
        """Units that can be used now, and a few more."""
        return self.count - sum(worker.unit is not None for worker in self._all) + _SPARE

    def _give(
        self, waiting: deque[_Unit], asked: Mapping[str, Any], min_sure: float | None, batch_size: int
    ) -> None:
        """Give units to idle workers, and start workers for those that are left."""
        for worker in self._all:
            if waiting and worker.is_ready and worker.unit is None:
                worker.unit = waiting.popleft()
                with contextlib.suppress(OSError):  # it was killed while idle; `_hear` will see
                    worker.pipe.send((worker.unit.images, worker.unit.first_batch))
        loading = sum(not worker.is_ready for worker in self._all)
        for _ in range(min(len(waiting) - loading, self.count - len(self._all))):
            arguments = (self.model, {**asked, "batch_size": batch_size}, min_sure)
            self._all.append(_started(arguments, self.threads))

    def _hear(self, line: deque[_Unit], waiting: deque[_Unit]) -> None:
        """Wait until a worker says something, or ends."""
        speaking = connection.wait([worker.pipe for worker in self._all])
        for worker in [one for one in self._all if one.pipe in speaking]:
            try:
                said = worker.pipe.recv()
            except (EOFError, OSError):
                self._all.remove(worker)
                self._lost(worker, line, waiting)
                continue
            if not worker.is_ready:
                if said is not None:
                    raise said
                worker.is_ready, self._failed_starts = True, 0
            else:
                assert worker.unit is not None
                worker.unit.rows, worker.unit.error = said
                worker.unit = None

    def _lost(self, worker: _Worker, line: deque[_Unit], waiting: deque[_Unit]) -> None:
        """A worker has ended; what it had is captioned again."""
        worker.pipe.close()
        worker.process.join()
        how = _ending(worker.process.exitcode)
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts == _STARTS:
                raise DDCapError(
                    f"--workers {self.count}: {_STARTS} processes in a row ended while they loaded the "
                    f"model ({how}); free memory, or use fewer --workers"
                )
        unit = worker.unit
        if unit is None:
            return
        unit.losses += 1
        again: list[_Unit] = []
        if unit.losses == 1:
            again = [unit]
        elif len(unit.images) > 1:
            again = [_Unit([image], unit.first_batch, losses=1) for image in unit.images]
        else:
            (image,) = unit.images
            reason = f"the process that captioned it ended ({how}), and so did the next one"
            unit.rows = [{"error": f"{image!s}: {reason}; free memory, or leave the image out"}]
            return
        place = line.index(unit)
        line.remove(unit)
        for number, one in enumerate(again):
            line.insert(place + number, one)
        waiting.extendleft(reversed(again))

    def _stop(self) -> None:
        """End all workers; they hold nothing that is not elsewhere."""
        for worker in self._all:
            worker.process.terminate()
        for worker in self._all:
            worker.process.join()
            worker.pipe.close()
        self._all.clear()


def own_workers(device: str) -> int:
    """Number of processes that this machine captions fastest with: one a core, if memory suffices.

    Args:
        device: of the model; a GPU has one process, whose threads read ahead.
    """
    cores = own_cores()
    if device != "cpu" or cores == 1:
        return 1
    memory = own_memory()
    return cores if memory is None else max(1, min(cores, memory // _MEMORY - 1))


def _units(images: Iterable[ImageSource], batch_size: int, size: int) -> Iterator[_Unit]:
    """Whole batches, until they are `size` images or many bytes."""
    coming, first_batch = iter(images), 0
    while True:
        unit: list[ImageSource] = []
        held = 0
        while len(unit) < size and held < _LARGEST:
            batch = list(itertools.islice(coming, batch_size))
            unit += batch
            held += sum(len(one.content) for one in batch if isinstance(one, EncodedImage))
            if len(batch) < batch_size:
                break
        if not unit:
            return
        yield _Unit(unit, first_batch)
        first_batch += -(-len(unit) // batch_size)


def _started(arguments: tuple[Any, ...], threads: int) -> _Worker:
    """A worker that loads its model now.

    It is a new interpreter, not a fork: threads, such as ONNX Runtime's, do not survive a fork.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, *arguments), daemon=True)
    with _inherited(threads):
        process.start()
    theirs.close()  # so that the pipe ends with the process
    return _Worker(process, ours)


@contextlib.contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """Set what a process that is started now has from its first moment.

    OpenBLAS, PyTorch and `own_cores` read the number of threads when they are imported. Ctrl-C is for the
    process that writes: it is blocked here for as long, which is inherited, and comes afterwards.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    has_masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    if has_masks:
        resource_tracker.ensure_running()  # it would unblock the signal
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if has_masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _work(pipe: Connection, model: ModelArguments, asked: Mapping[str, Any], min_sure: float | None) -> None:
    """Caption units until the pipe ends: with the process that writes, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        captioner = UnitCaptioner(model, asked, min_sure)
    except Exception as error:
        _say(pipe, error)
        return
    _say(pipe, None)
    while True:
        try:
            images, first_batch = pipe.recv()
        except (EOFError, OSError):
            return
        rows: list[Row] = []
        failed: BaseException | None = None
        try:
            rows += (row for _, row in captioner.rows(StreamPart(images, first_batch)))
        except Exception as error:
            failed = error
        _say(pipe, (rows, failed))


def _say(pipe: Connection, what: Any) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more; `recv` will say so
        pipe.send(what)


def _ending(status: int | None) -> str:
    """Say how a process ended, for messages."""
    if status is not None and status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            pass
    return f"exit status {status}"
