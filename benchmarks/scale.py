"""Measure how much work of a core a caption is, and what a million images would cost.

    python benchmarks/scale.py FOLDER [--images 512] [--preset fast] [--price 0.04] [--no-ray]

One process with two threads, two worker processes and two actors of Ray caption the same images by turns.
Counted are the processor's seconds of the processes that caption and of the one that writes, from the first
tenth of the rows on (loading the model and starting processes are left out): unlike the time that passes,
they do not grow much where other programs share the machine.
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

from ddcap import Captioner
from ddcap.bulk.rows import JsonLines
from ddcap.bulk.run import Progress, caption_files
from ddcap.bulk.walk import walk
from ddcap.bulk.workers import Workers
from ddcap.machine import describe_machine

CORES, MODEL = 2, ("default", "cpu", "auto", "auto")
UNIT, RAY_UNIT = 4, 16  # images; small, so that few are in work when counting begins
MACHINES = (2, 64)  # cores


def main() -> None:
    """Print a line for each engine, then the table of a million images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", "--pictures", dest="images", type=int, default=512)
    parser.add_argument("--preset", choices=["fast", "best"])
    parser.add_argument("--price", type=float, default=0.04, help="of a core for an hour, in dollars")
    parser.add_argument("--no-ray", action="store_true", help="leave out Ray")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(CORES)
    print(describe_machine())
    found = walk([options.folder], on_problem=lambda *_: None)
    names = [str(path) for path in itertools.islice(found, options.images)]
    asked: dict[str, Any] = {"preset": options.preset}
    captioner = Captioner.from_pretrained()
    engines: dict[str, Callable[[dict[str, Any]], Progress]] = {
        "one process, two threads": lambda how: caption_files(captioner, names, **how, **asked),
        "two workers": lambda how: caption_files(
            captioner, names, workers=Workers(MODEL, CORES, unit=UNIT), **how, **asked
        ),
    }
    if not options.no_ray:
        engines["two actors of Ray"] = lambda how: _over_ray(names, how | asked)
    found_seconds = {name: _measure(name, len(names), engine) for name, engine in engines.items()}
    first, *others = found_seconds
    for name in others:
        print(f"{name}: {found_seconds[name] / found_seconds[first]:.2f} of the seconds of {first}")
    each = found_seconds["two workers"]
    hours = each * 1e6 / 3600
    print(f"| a million images at {each:.3f} s | hours | core hours | dollars at {options.price:g} |")
    print("|---|---|---|---|")
    for cores in MACHINES:
        print(f"| {cores} cores | {hours / cores:.1f} | {hours:.0f} | {hours * options.price:.2f} |")


def _over_ray(names: list[str], how: dict[str, Any]) -> Progress:
    import ray

    from ddcap.bulk.ray_engine import caption_on_ray

    said = os.environ.pop("OMP_NUM_THREADS")  # Ray says it to each actor
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        return caption_on_ray(MODEL, names, workers=CORES, unit=RAY_UNIT, **how)
    finally:
        ray.shutdown()
        os.environ["OMP_NUM_THREADS"] = said


def _measure(name: str, total: int, caption: Callable[[dict[str, Any]], Progress]) -> float:
    """A core's seconds for an image."""
    marks: list[tuple[int, float, float]] = []

    def mark(progress: Progress) -> None:
        if progress.captioned in (total // 10, total):
            marks.append((progress.captioned, time.perf_counter(), _seconds()))

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


_seen: dict[int, float] = {}


def _seconds() -> float:
    """Of this process and of all workers that ever were, with what the ended ones had used."""
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if "MapWorker" in command or "spawn_main" in command:
                used = process.cpu_times()
                _seen[process.pid] = used.user + used.system
        except psutil.Error:
            continue  # has ended
    return time.process_time() + sum(_seen.values())


if __name__ == "__main__":
    main()
