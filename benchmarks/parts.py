"""Time the parts of a caption, beside what this machine could do at most.

    python benchmarks/parts.py [--photos FOLDER] [--rounds 9]

One photograph at a time, with the default's ONNX graphs in int8. A figure is the mean over the photographs,
the median over the rounds. Three limits are measured in the same run: a large product of float32 matrices,
one of int8 matrices in ONNX Runtime, and a read of memory. PyTorch counts the encoder's operations. Those of
the denoiser are its products' with weights, at the positions that its graph is asked to compute. The weights
that a pass reads are those of the denoiser's matrices.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
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

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, whose time counts as the part's."""

        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **named)
            self.seconds[part] += time.perf_counter() - start
            return result

        return run


class TimedSession:
    """A session of ONNX Runtime whose runs are timed."""

    def __init__(self, session: Any, run: Callable[..., Any]) -> None:
        self._session, self._run = session, run
        self.asked: list[tuple[int, int]] = []  # positions that a step computes, and that it predicts

    def run(self, names: Any, inputs: Any) -> Any:
        """See `onnxruntime.InferenceSession.run`."""
        if "rows" in inputs:
            self.asked.append((len(inputs["rows"]), len(inputs["asked"])))
        return self._run(names, inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def time_parts(
    captioner: Captioner, photos: Sequence[Path], rounds: int
) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """Milliseconds by part for one photograph, and what all passes for the photographs computed."""
    clock, model = Clock(), captioner.model
    for name, session in model._graphs.items():
        model._graphs[name] = TimedSession(session, clock.timed(name, session.run))
    if model.detector is not None:
        model.detector = clock.timed("detector", model.detector)
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        clock.seconds.clear()
        model._graphs["step"].asked.clear()
        start = time.perf_counter()
        for photo in photos:
            clock.timed("file", captioner.pixels)(photo)
        for photo in photos:
            captioner(photo)
        total = time.perf_counter() - start - clock.seconds["file"]  # the call reads the file once more
        parts = {part: 1000 * seconds / len(photos) for part, seconds in clock.seconds.items()}
        parts["total"] = 1000 * total / len(photos)
        parts["rest"] = parts["total"] - sum(value for part, value in parts.items() if part != "total")
        if number:  # the first round warms up
            found.append(parts)
    parts = {part: statistics.median(one[part] for one in found) for part in found[0]}
    return parts, model._graphs["step"].asked


def step_operations(captioner: Captioner, asked: Sequence[tuple[int, int]]) -> float:
    """Operations (two a multiply-add) of passes, in products with weights.

    A block has 14 matrices of width by width, three of them for queries, keys and values. The last one
    computes only these at positions that are not predicted.
    """
    shape = captioner.model.config.model
    rows, predicted = (sum(part) for part in zip(*asked, strict=True))
    square = shape.width**2
    blocks = 14 * (shape.layers - 1) * rows + 3 * rows + 11 * predicted
    return 2.0 * (square * blocks + shape.width * captioner.model.mask_id * predicted)


def count_encoder(photos: Sequence[Path], model: str) -> tuple[float, int]:
    """Operations of the encoder for one photograph; weights of a pass.

    The weights are the numbers in the matrices that a pass of the denoiser multiplies with.
    """
    captioner = Captioner.from_pretrained(model, runtime="torch", precision="float32")
    with FlopCounterMode(display=False) as encoder:
        captioner.features(photos)
    matrices = (one for one in captioner.model.denoiser.state_dict().values() if one.ndim == 2)
    weights = sum(matrix.numel() for matrix in matrices)
    return encoder.get_total_flops() / len(photos), weights


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
    parts, asked = time_parts(captioner, photos, options.rounds)
    passes, decoder = len(asked) / len(photos), step_operations(captioner, asked) / len(photos)
    encoder, weights = count_encoder(photos, options.model)
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
