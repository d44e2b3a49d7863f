"""Measure the memory of a large job's names: walked, a row written for each, and walked again.

    python benchmarks/names.py [--counts 10000 1000000]

The files are empty and nothing is captioned: what is measured is the walk, what was seen, and the rows. Each
measurement is a process of its own; its peak memory is what Linux says (VmHWM).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ddcap.bulk.outputs import open_output
from ddcap.bulk.run import Job
from ddcap.machine import describe_machine

_ROW = {"caption": "a brown dog runs through the tall grass", "sure": 0.5}


def main() -> None:
    """Print a line for each number of names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        _job(*map(Path, options.job))
        return
    print(describe_machine())
    for count in options.counts:
        with tempfile.TemporaryDirectory() as temporary:
            folder, out = Path(temporary) / "images", Path(temporary) / "captions.jsonl"
            folder.mkdir()
            for number in range(count):
                os.close(os.open(folder / f"{number:012}.jpg", os.O_CREAT))
            for what in ("first", "again"):
                command = [sys.executable, __file__, "--job", str(folder), str(out)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"{count:,} names, {what}: {done.stdout.strip()}", flush=True)


def _job(folder: Path, out: Path) -> None:
    """Walk a folder, and write a row for each name that has none."""
    before, start = _peak(), time.perf_counter()
    output = open_output(out)
    job = Job(output)
    for image in job.images([folder], "skip"):
        job.take(image, _ROW)
    output.close()
    took = time.perf_counter() - start
    print(
        f"{job.progress.captioned:,} new, {job.progress.skipped:,} done before; {took:.1f} s; "
        f"peak {_peak():.0f} MB, {_peak() - before:.0f} MB of it for the names"
    )


def _peak() -> float:
    """Of this process since it began, in MB; `getrusage` would count the one that started it, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
