"""Time a caption: ONNX graphs in int8 and float32, and PyTorch, one photograph and in bulk.

Everything runs by turns in one process, so that a busy machine slows all of it; the figures are medians with
the lowest and the highest. A cold start is a process of its own.

    python benchmarks/decode.py [--photos FOLDER] [--rounds 9]
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
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            time.sleep(0.5)  # the threads of the job before may still spin
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        count = len(photos) if "photographs" in name else 1
        each = sorted(1000 * second / count for second in seconds)
        rate = f", {1000 / statistics.median(each):.1f} a second" if count > 1 else ""
        print(f"{name}: {statistics.median(each):.0f} ms [{each[0]:.0f}, {each[-1]:.0f}] each{rate}")


def run_cold(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    return time.perf_counter() - start, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
