"""Measure how much work of a core a caption is, here and over Ray, and what a billion would be.

    python benchmarks/scale.py FOLDER [--images 512] [--preset fast] [--price 0.04]

Both engines caption the same images on two cores or workers. Counted are the processor's seconds of the
processes that caption, from the first tenth of the rows on (loading the model and starting Ray are left out):
unlike the time that passes, they do not grow much where other programs share the machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from ddcap import Captioner
from ddcap.bulk.ray_engine import caption_on_ray
from ddcap.bulk.rows import JsonLines
from ddcap.bulk.run import Progress, caption_files
from ddcap.bulk.walk import walk
from ddcap.machine import describe_machine

CORES = 2


def main() -> None:
    """Print a line for each engine, then what follows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", "--pictures", dest="images", type=int, default=512)
    parser.add_argument("--preset", choices=["fast", "best"])
    parser.add_argument("--price", type=float, default=0.04, help="of a core for an hour, in dollars")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(CORES)
    print(describe_machine())
    found = walk([options.folder], on_problem=lambda *_: None)
    names = [str(path) for path in itertools.islice(found, options.images)]
    asked: dict[str, Any] = {"preset": options.preset}
    captioner = Captioner.from_pretrained()
    own = _measure(
        "local", len(names), _own_seconds, lambda how: caption_files(captioner, names, **how, **asked)
    )
    del os.environ["OMP_NUM_THREADS"]  # Ray says it to each worker
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="error")
    model = ("default", "cpu", "auto", "auto")
    over = _measure(
        "ray",
        len(names),
        _workers_seconds,
        lambda how: caption_on_ray(model, names, workers=CORES, unit=16, **how, **asked),
    )
    ray.shutdown()
    print(f"ray / local: {over / own:.2f} of the processor's seconds")
    hours = over * 1e9 / 3600
    print(
        f"a billion images: {hours:,.0f} core hours; with 1,000 cores {hours / 24_000:.1f} days; "
        f"at {options.price:g} dollars a core hour {hours * options.price:,.0f} dollars"
    )


def _measure(
    name: str, total: int, seconds: Callable[[], float], caption: Callable[[dict[str, Any]], Progress]
) -> float:
    """A core's seconds for an image."""
    marks: list[tuple[int, float, float]] = []

    def mark(progress: Progress) -> None:
        if progress.captioned in (total // 10, total):
            marks.append((progress.captioned, time.perf_counter(), seconds()))

    with tempfile.TemporaryDirectory() as temporary:
        output = JsonLines(Path(temporary) / "captions.jsonl", overwrite=False)
        caption({"output": output, "on_progress": mark})
        output.close()
    (first, began, used), (last, ended, all_used) = marks
    each = (all_used - used) / (last - first)
    rate = (last - first) / (ended - began)
    print(
        f"{name}: {last - first} images, {rate:.2f} a second here; {each:.4f} s of a core each, "
        f"which is {1 / each:.1f} a second and core",
        flush=True,
    )
    return each


def _own_seconds() -> float:
    return time.process_time()


_seen: dict[int, float] = {}


def _workers_seconds() -> float:
    """Of all workers that ever were, with what the ended ones had used."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                used = process.cpu_times()
                _seen[process.pid] = used.user + used.system
        except psutil.Error:
            continue  # has ended
    return sum(_seen.values())


if __name__ == "__main__":
    main()
