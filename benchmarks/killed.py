"""Kill a job of many images at random moments, run it again each time, and count what is in its file.

    python benchmarks/killed.py FOLDER [--kills 2] [--preset fast]

Exit status 1 if an image is missing or has two rows.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ddcap.bulk.walk import walk
from ddcap.machine import describe_machine


def main() -> int:
    """Print a line for each run, and what there is at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, help="of the moments (default: another one each time)")
    parser.add_argument("--preset", choices=["fast", "best"])
    options = parser.parse_args()
    print(describe_machine())
    names = {str(path) for path in walk([options.folder], on_problem=lambda *_: None)}
    draws = random.Random(options.seed)
    moments = sorted(draws.uniform(0, len(names)) for _ in range(options.kills))
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "captions.jsonl"
        command = [sys.executable, "-m", "ddcap", "caption", str(options.folder), "--out", str(out)]
        command += [] if options.preset is None else ["--preset", options.preset]
        for moment in moments:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while process.poll() is None and _rows(out) < moment:
                time.sleep(0.2)
            time.sleep(draws.random())
            process.send_signal(signal.SIGKILL)
            process.wait()
            torn = len(out.read_bytes().rpartition(b"\n")[2])
            print(f"killed after {_rows(out):,} rows; {torn} bytes of a torn row", flush=True)
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        print(done.stderr.strip())
        with out.open(encoding="utf-8") as file:
            counts = Counter(json.loads(line)["image"] for line in file)
    doubles = sum(count > 1 for count in counts.values())
    missing, strange = len(names - counts.keys()), len(counts.keys() - names)
    print(f"{len(names):,} images, {counts.total():,} rows: {missing} missing, {doubles} twice")
    return int(bool(doubles or missing or strange or done.returncode))


def _rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
