"""Measure how many captions a second joint decoding gives, against one request after another on all cores.

    python benchmarks/joint.py [--photos FOLDER] [--users 2 8 16] [--rows 64 256] [--rounds 3]

Images are read beforehand; encoder and decoding count. All take turns within each round, so that a machine
that is busy with other things is so for all of them, and every caption is compared with the one alone.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddcap import Captioner
from ddcap.data.images import find_images
from ddcap.decoding.generate import CaptionRequest
from ddcap.machine import describe_machine
from ddcap.serve.engine import Engine, EngineSettings
from ddcap.serve.joint import ROWS

_COUNTS = ("requests_in_steps", "steps_run")
EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    """Print a line for each number of users and of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=EXAMPLES, help="folder (default: the examples)")
    parser.add_argument("--users", type=int, nargs="+", default=[2, 8, 16], help="requests at once")
    parser.add_argument("--rows", type=int, nargs="+", default=[ROWS, 256], help="of a joint step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["best", "fast"])
    options = parser.parse_args()
    print(describe_machine())
    captioner = Captioner.from_pretrained()
    pixels = [captioner.pixels(photo) for photo in find_images([options.photos])]

    def caption(model: Any, request: CaptionRequest, one: np.ndarray) -> str:
        features = model.encode(one[None])
        generator = np.random.default_rng(0)
        return request.captions(model, features, captioner.word_vocabulary, generator)[0][0].text

    def alone(request: CaptionRequest) -> list[str]:
        return [caption(captioner.model, request, one) for one in pixels]

    def together(request: CaptionRequest, users: int, rows: int) -> tuple[list[str], float]:
        engine = Engine(captioner, EngineSettings(together=users, queue=len(pixels), rows=rows))

        async def ask() -> list[str]:
            works = [lambda own, p=one: caption(own.model, request, p) for one in pixels]
            return await asyncio.gather(*(engine.run(work) for work in works))

        found = asyncio.run(ask())
        engine.close()
        requests, steps = (sum(getattr(lane, of) for lane in engine.lanes) for of in _COUNTS)
        return found, requests / steps

    ways = [(users, rows) for users in options.users for rows in options.rows]
    for preset in options.presets:
        request = CaptionRequest(captioner.settings(preset=preset))
        expected, rates, alike, joined = alone(request), [], {}, {}
        ratios: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            start = time.perf_counter()
            alone(request)
            rates.append(len(pixels) / (time.perf_counter() - start))
            for way in ways:
                start = time.perf_counter()
                found, joined[way] = together(request, *way)
                ratios[way].append(len(pixels) / (time.perf_counter() - start) / rates[-1])
                alike[way] = sum(one == other for one, other in zip(found, expected, strict=True))
        print(f"{preset}: one after another {statistics.median(rates):.1f} a second")
        for (users, rows), found in ratios.items():
            way = users, rows
            print(
                f"    {users} at once, {rows} rows: {statistics.median(found):.2f} times "
                f"[{min(found):.2f}, {max(found):.2f}]; {joined[way]:.1f} requests a step; "
                f"{alike[way]} of {len(pixels)} captions the same",
                flush=True,
            )


if __name__ == "__main__":
    main()
