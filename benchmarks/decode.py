"""Time a caption: ONNX graphs in int8 and float32, and PyTorch, one photograph and in bulk.

Everything runs by turns in one process, so that a busy machine slows all of it; the figures are medians with
the lowest and the highest. Seconds of a core are those that the process used; they hardly depend on who else
is at work. The ratio is to ONNX int8 of the same round. A cold start is a process of its own.

    python benchmarks/decode.py [--photos FOLDER] [--rounds 9] [--runtime onnx]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ddcap import Captioner
from ddcap.data.images import find_images
from ddcap.machine import describe_machine

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNTIMES = (("onnx", "int8"), ("onnx", "float32"), ("torch", "float32"), ("torch", "auto"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=EXAMPLES, help="folder (default: the examples)")
    parser.add_argument("--model", default="default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runtime", choices=["onnx", "torch"], help="only this one (default: both)")
    options = parser.parse_args()
    photos = find_images([options.photos])
    print(describe_machine())
    # first: what this process takes would count as the others', until they start their own program
    command = [sys.executable, "-m", "ddcap", "caption", "--model", options.model, str(photos[0])]
    starts = [run_cold(command) for _ in range(5)]
    seconds, megabytes = (sorted(values) for values in zip(*starts, strict=True))
    print(f"cold start: {seconds[2]:.2f} s [{seconds[0]:.2f}, {seconds[-1]:.2f}], {megabytes[2]:.0f} MB")

    jobs: dict[str, Callable[[], object]] = {}
    for runtime, precision in RUNTIMES:
        if options.runtime not in (None, runtime):
            continue
        captioner = Captioner.from_pretrained(options.model, precision=precision, runtime=runtime)
        name = f"{runtime} {captioner.precision}"
        if f"{name}, one photograph" not in jobs:
            jobs[f"{name}, one photograph"] = lambda one=captioner: one(photos[0])
            jobs[f"{name}, {len(photos)} photographs"] = lambda one=captioner: one(photos)
        if name == "onnx int8":
            jobs[f"{name}, one photograph, preset fast"] = lambda one=captioner: one(photos[0], preset="fast")
            jobs[f"{name}, {len(photos)} photographs, preset fast"] = lambda one=captioner: one(
                photos, preset="fast"
            )
    for job in jobs.values():
        job()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            time.sleep(0.5)  # the threads of the job before may still spin
            start, used = time.perf_counter(), time.process_time()
            job()
            times[name].append((time.perf_counter() - start, time.process_time() - used))
    for name, taken in times.items():
        count = len(photos) if "photographs" in name else 1
        passed, used = (sorted(1000 * one / count for one in ones) for ones in zip(*taken, strict=True))
        rate = f", {1000 / statistics.median(passed):.1f} a second" if count > 1 else ""
        print(
            f"{name}: {statistics.median(passed):.0f} ms [{passed[0]:.0f}, {passed[-1]:.0f}] each{rate}; "
            f"{statistics.median(used):.0f} ms [{used[0]:.0f}, {used[-1]:.0f}] of a core{_ratio(name, times)}"
        )


def _ratio(name: str, times: dict[str, list[tuple[float, float]]]) -> str:
    """Say how many times the core's time of ONNX int8 a job took, round by round."""
    first = "onnx int8" + name[name.index(",") :]
    if first not in times or name == first:
        return ""
    pairs = zip(times[name], times[first], strict=True)
    ratios = sorted(mine / theirs for (_, mine), (_, theirs) in pairs)
    return f", {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] of int8's"


def run_cold(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    return time.perf_counter() - start, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
