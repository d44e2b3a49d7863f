"""Time the parts of a caption, beside what this machine could do at most.

    python benchmarks/parts.py [--photos FOLDER] [--rounds 9]

One photograph at a time, with the default's ONNX graphs in int8. A figure is the mean over the photographs,
the median over the rounds. Three limits are measured in the same run: a large product of float32 matrices,
one of int8 matrices in ONNX Runtime, and a read of memory. PyTorch counts the operations in the same model.
The weights that a pass reads are those of the denoiser's matrices.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from decode_paper_size import read_speed
from onnx import TensorProto, helper
from paper_size import product_speed
from torch.utils.flop_counter import FlopCounterMode

from ddcap import Captioner
from ddcap.data.images import find_images
from ddcap.machine import describe_machine
from ddcap.model.onnx_session import session_options

EXAMPLES = Path(__file__).parents[1] / "examples" / "photos"
CPU, SIZE = torch.device("cpu"), 1024


class Clock:
    """Seconds by part, summed until they are taken."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, whose time counts as the part's."""

        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **named)
            self.seconds[part] += time.perf_counter() - start
            self.calls[part] += 1
            return result

        return run


class TimedSession:
    """A session of ONNX Runtime whose runs are timed."""

    def __init__(self, session: Any, run: Callable[..., Any]) -> None:
        self._session, self.run = session, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def time_parts(captioner: Captioner, photos: Sequence[Path], rounds: int) -> tuple[dict[str, float], float]:
    """Milliseconds by part for one photograph, and the passes of the denoiser."""
    clock, model = Clock(), captioner.model
    for name, session in model._graphs.items():
        model._graphs[name] = TimedSession(session, clock.timed(name, session.run))
    if model.detector is not None:
        model.detector = clock.timed("detector", model.detector)
    found: list[dict[str, float]] = []
    passes = 0.0
    for number in range(rounds + 1):
        clock.seconds.clear()
        clock.calls.clear()
        start = time.perf_counter()
        for photo in photos:
            clock.timed("file", captioner.pixels)(photo)
        for photo in photos:
            captioner(photo)
        total = time.perf_counter() - start - clock.seconds["file"]  # the call reads the file once more
        parts = {part: 1000 * seconds / len(photos) for part, seconds in clock.seconds.items()}
        parts["total"] = 1000 * total / len(photos)
        parts["rest"] = parts["total"] - sum(value for part, value in parts.items() if part != "total")
        passes = clock.calls["step"] / len(photos)
        if number:  # the first round warms up
            found.append(parts)
    return {part: statistics.median(one[part] for one in found) for part in found[0]}, passes


def count_work(photos: Sequence[Path], model: str) -> tuple[float, float, int]:
    """Operations (two a multiply-add) of encoder and decoder for one photograph; weights of a pass.

    The weights are the numbers in the matrices that a pass of the denoiser multiplies with.
    """
    captioner = Captioner.from_pretrained(model, runtime="torch", precision="float32")
    with FlopCounterMode(display=False) as encoder:
        captioner.features(photos)
    with FlopCounterMode(display=False) as everything:
        captioner(photos, batch_size=1)
    seen = encoder.get_total_flops()
    matrices = (one for one in captioner.model.denoiser.state_dict().values() if one.ndim == 2)
    weights = sum(matrix.numel() for matrix in matrices)
    return seen / len(photos), (everything.get_total_flops() - seen) / len(photos), weights


def integer_product_speed() -> float:
    """Operations a second of a product of two 8-bit matrices in ONNX Runtime, the second constant.

    PyTorch's own is a hundred times slower on CPUs without VNNI.
    """
    random = np.random.default_rng(0)
    left = random.integers(0, 128, (SIZE, SIZE)).astype(np.uint8)
    right = random.integers(-64, 64, (SIZE, SIZE)).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, left.shape)],
        [helper.make_tensor("right", TensorProto.INT8, right.shape, right.tobytes(), raw=True)],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(content.SerializeToString(), session_options(None))
    times = []
    for _ in range(15):
        start = time.perf_counter()
        session.run(None, {"left": left})
        times.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--photos", type=Path, default=EXAMPLES, help="folder (default: the example photographs)"
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    photos = [Path(path) for path in find_images([options.photos])]
    print(describe_machine())
    captioner = Captioner.from_pretrained(options.model, runtime="onnx", precision="int8")
    parts, passes = time_parts(captioner, photos, options.rounds)
    encoder, decoder, weights = count_work(photos, options.model)
    single, integers, read = product_speed(CPU, torch.float32), integer_product_speed(), read_speed()
    print(
        f"at most: {single / 1e9:.0f} GFLOP/s in float32, {integers / 1e9:.0f} GOP/s in int8, "
        f"{read / 1e9:.0f} GB/s"
    )
    limits = {
        "encoder": f"{1000 * encoder / single:.1f} ms for {encoder / 1e9:.2f} GFLOP in float32",
        "step": f"{1000 * decoder / integers:.1f} ms for {decoder / 1e9:.2f} GOP in int8; "
        f"{1000 * passes * weights / read:.1f} ms to read {weights / 1e6:.1f} MB {passes:.1f} times",
    }
    print("| part | ms | share | limit |\n|---|---|---|---|")
    for part in ("file", "encoder", "detector", "memory", "step", "choose", "rest", "total"):
        if part in parts:
            share = f"{100 * parts[part] / parts['total']:.0f} %"
            print(f"| {part} | {parts[part]:.1f} | {share} | {limits.get(part, '')} |")


if __name__ == "__main__":
    main()
