"""How many captions a second joint decoding gives, against one request after another.

    python benchmarks/joint.py [--photos FOLDER] [--rounds 2]

Pictures are read beforehand; encoder and decoding count. Every caption is compared with the one alone.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddcap import Captioner
from ddcap.data.images import find_images
from ddcap.decoding.request import CaptionRequest
from ddcap.machine import describe_machine
from ddcap.serve.engine import Engine, EngineSettings

_COUNTS = ("requests_in_steps", "steps_run")
EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    """Print a line for each number of users."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=EXAMPLES, help="folder (default: the examples)")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(describe_machine())
    captioner = Captioner.from_pretrained()
    pixels = [captioner.pixels(photo) for photo in find_images([options.photos])] * options.rounds

    def caption(model: Any, request: CaptionRequest, one: np.ndarray) -> str:
        features = model.encode(one[None])
        generator = np.random.default_rng(0)
        return request.captions(model, features, captioner.word_vocabulary, generator)[0][0].text

    for preset in (None, "fast"):
        request = CaptionRequest(captioner.settings(preset=preset))
        start = time.perf_counter()
        alone = [caption(captioner.model, request, one) for one in pixels]
        rate = len(pixels) / (time.perf_counter() - start)
        print(f"{preset or 'default'}: one after another {rate:.1f} a second")
        for users in (2, 4, 8, 16):
            engine = Engine(captioner, EngineSettings(together=users, queue=len(pixels)))

            async def ask(engine: Engine = engine, request: CaptionRequest = request) -> list[str]:
                works = [lambda own, p=one: caption(own.model, request, p) for one in pixels]
                return await asyncio.gather(*(engine.run(work) for work in works))

            start = time.perf_counter()
            found = asyncio.run(ask())
            together = len(pixels) / (time.perf_counter() - start)
            engine.close()
            pictures, steps = (sum(getattr(lane, of) for lane in engine.lanes) for of in _COUNTS)
            same = sum(one == other for one, other in zip(found, alone, strict=True))
            print(
                f"    {users} at once: {together:.1f} a second, {together / rate:.2f} times; "
                f"{pictures / steps:.1f} pictures a step; {same} of {len(alone)} captions the same",
                flush=True,
            )


if __name__ == "__main__":
    main()
