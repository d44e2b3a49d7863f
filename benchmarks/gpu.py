"""Measure a GPU: a training step and captions at the paper's size, and the default's captions.

    python benchmarks/gpu.py [--device cuda] [--output gpu.json] [--seconds 480] [--resume]

One command, one JSON, and tables at the end. It begins with what matters most, and leaves out what there is
no time left for; with --resume it goes on where a run with the same output stopped. All weights are random,
but the default's. What fails is written down as such, and the rest goes on.

- decoding, from features, 12 tokens: exact (guidance 1.17, one token a step) and fast (four steps,
  `distinct`), each plainly and by CUDA graphs, the released code's loop, and Hugging Face's GPT-2, greedy,
  its weights in bfloat16. All ways of a batch size take turns. At one image the seconds are the latency.
- the default: photographs a second, from pixels; at one photograph the seconds are the latency.
- training: ViT-B/16 frozen or trained along, bfloat16, the recipe's 512 images and 64 (its share of eight
  GPUs); plainly, with blocks compiled, with attention written out, and as the released code does it: one-hot
  states of all words, padding computed. Images a second, memory, the share of the GPU's peak, from its data
  sheet, and of a large product's speed, measured in the same run. Operations are those of the plain way.
- decoding, compiled: GPT-2 with a static cache, compiled; exact and fast with blocks compiled, with and
  without CUDA graphs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import transformers
from decode_paper_size import LENGTH
from gpu_decoding import Size, compiled_ways, decoding_ways, measure_decoding, model_of
from paper_size import noise_one_hot, now, product_speed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddcap import Captioner
from ddcap.data.batches import CaptionBatch
from ddcap.data.images import find_images, load_image
from ddcap.machine import computing, describe_machine
from ddcap.model import blocks
from ddcap.model.ddcap import DDCapModel
from ddcap.settings import ModelSettings
from ddcap.training.loss import batch_features, caption_loss, draw_noise
from ddcap.training.state import compile_blocks

PHOTOS = Path(__file__).parents[1] / "examples"
LONGEST = 20
PEAKS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}
"""TFLOP/s in bfloat16 without sparsity, from NVIDIA's data sheets, by a part of the GPU's name."""
COMPILING = 60.0
"""Seconds that must be left to begin with something that is compiled."""

SIZES = {
    "paper": Size(ModelSettings(), 50_257, 224, 768, 12, (512, 64), (1, 8, 64, 512), 5),
    # for a test without a GPU
    "tiny": Size(ModelSettings(width=32, layers=2, heads=2, max_length=20), 60, 32, 32, 2, (4,), (1,), 1),
}
HOWS = ("plain", "compiled", "attention written out", "one-hot")


def written_out(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, dropout: float
) -> Tensor:
    """Attention as a textbook has it, as `attend` is called."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if attn_mask is not None:
        scores = (
            scores.masked_fill(~attn_mask, -torch.inf)
            if attn_mask.dtype == torch.bool
            else scores + attn_mask
        )
    return torch.dropout(scores.softmax(dim=-1), dropout, train=dropout > 0) @ value


def measure_training(
    size: Size, device: torch.device, how: str, images: int, backend: str, *, trainable: bool
) -> dict[str, float]:
    """Images a second of a step with one caption an image, peak memory, operations of a step."""
    torch.compiler.reset()
    model = model_of(size, trainable=trainable).to(device).train()
    model.encoder.requires_grad_(trainable)
    if how == "compiled":
        compile_blocks(model, backend)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    lengths = (11.5 + 2.4 * torch.randn(images)).round().long().clamp(6, LONGEST).to(device)
    width = LONGEST if how == "one-hot" else int(lengths.max())
    tokens = torch.randint(size.words, (images, width), device=device)
    positions = (torch.arange(width, device=device) < lengths[:, None]).flatten().nonzero().squeeze(1)
    pixels = torch.randn(images, 3, size.pixels, size.pixels, device=device)
    names = tuple(map(str, range(images)))
    batch = CaptionBatch(pixels, None, None, tokens, lengths, positions, names, tuple(range(images)))

    def step() -> None:
        optimizer.zero_grad()
        with computing(device, bfloat16=device.type == "cuda"):
            loss = _one_hot_loss(model, batch, size.words) if how == "one-hot" else _loss(model, batch)
        loss.backward()
        optimizer.step()

    with patch.object(blocks, "attend", written_out) if how == "attention written out" else nullcontext():
        operations = 0
        if how != "compiled":
            with FlopCounterMode(display=False) as counter:
                step()
            operations = counter.get_total_flops()
        for _ in range(3):  # a compiled step is compiled for shapes that change at its second call
            step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = _times(step, size.runs, device)
    found = {"images_per_second": images / times["seconds"], **times, "operations": operations}
    if device.type == "cuda":
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _loss(model: DDCapModel, batch: CaptionBatch) -> Tensor:
    """The loss as `ddcap train` computes it."""
    noise = draw_noise(
        torch.Generator().manual_seed(0),
        model.schedule,
        images=len(batch.places),
        captions_per_image=1,
        length=LONGEST,
    ).of(batch.places, batch.tokens.device)
    return caption_loss(model, batch, batch_features(model, batch), noise).token


def _one_hot_loss(model: DDCapModel, batch: CaptionBatch, words: int) -> Tensor:
    """The loss as a straightforward implementation computes it, see `paper_size.py`."""
    tokens, keys_values = batch.tokens, model.keys_values(batch_features(model, batch))
    timestep = torch.randint(model.config.diffusion.steps, (len(tokens),), device=tokens.device)
    noised = noise_one_hot(tokens, timestep, model.schedule, words)
    every = torch.full_like(batch.lengths, tokens.shape[1])  # nothing is left out
    logits = model.denoiser.logits(model(noised, timestep, every, keys_values))
    loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return loss[batch.positions].mean()


def measure_default(
    size: Size, device: torch.device, photos: Sequence[Path], has_time: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Photographs a second of the default, decoded from files that are read before."""
    images = [load_image(photo) for photo in photos]
    for graphs in (False, True) if device.type == "cuda" else (False,):
        captioner = Captioner.from_pretrained(
            device=str(device), runtime="torch", precision="auto", cuda_graphs=graphs
        )
        for count in size.batches:
            row = {"way": "CUDA graphs" if graphs else "plain", "images": count}
            if not has_time():
                yield {**row, "failed": "no time was left"}
                continue
            batch = (images * (count // len(images) + 1))[:count]
            # no more at once: the detector is at work on the CPU
            job = partial(captioner, batch, batch_size=min(count, 64))
            times = _times(job, min(size.runs, 3), device)
            yield {**row, "per_second": count / times["seconds"], **times}


def _times(job: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    job()
    found = []
    for _ in range(runs):
        begun = now(device)
        job()
        found.append(now(device) - begun)
    return {"seconds": statistics.median(found), "lowest": min(found), "highest": max(found)}


class Parts:
    """The measurements, part by part, written down after each.

    Args:
        output: the JSON.
        seconds: after which no part begins.
        result: what is known before.
    """

    def __init__(self, output: Path, seconds: float, result: dict[str, Any]) -> None:
        self.output, self.result, self._end = output, result, time.perf_counter() + seconds

    def has_time(self, seconds: float = 5.0) -> bool:
        """Return True if so many seconds are left."""
        return time.perf_counter() + seconds < self._end

    def measure(self, name: str, job: Callable[[], Any], seconds: float = 5.0) -> None:
        """Measure a part, unless it was measured before; what fails is written down, and the rest goes on.

        Args:
            name: of the part.
            job: gives its figures, or yields rows of them.
            seconds: that must be left.
        """
        if _is_done(self.result.get(name)):
            return
        begun, rows = time.perf_counter(), None
        if not self.has_time(seconds):
            self.result[name] = {"failed": "no time was left"}
        else:
            try:
                found = job()
                if isinstance(found, Iterator):
                    rows = []
                    self.result[name] = rows
                    for row in found:
                        print(row, flush=True)
                        rows.append(row)
                        self.write()
                else:
                    self.result[name] = found
            except Exception as error:
                failed = {"failed": f"{type(error).__name__}: {error}"[:500]}
                self.result[name] = failed if rows is None else [*rows, failed]
        found = self.result[name]
        shown = f"{len(found)} rows" if isinstance(found, list) else found
        print(f"{name}: {time.perf_counter() - begun:.0f} s, {shown}", flush=True)
        self.write()
        gc.collect()  # a model and what replays its passes know each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def write(self) -> None:
        """Write all that is known."""
        self.output.write_text(json.dumps(self.result, indent=1) + "\n")


def _is_done(part: Any) -> bool:
    rows = part if isinstance(part, list) else [part]
    return bool(rows) and all(row is not None and "failed" not in row for row in rows)


def add_shares(result: dict[str, Any], peak: float | None) -> None:
    """Add to each training the share of the peak (operations a second), and of a large product's speed."""
    for name, found in result.items():
        if not name.startswith("training") or "seconds" not in found:
            continue
        how = next(how for how in HOWS if f", {how}, " in name)
        plain = result.get(name.replace(f", {how}, ", ", plain, "), {})  # what is compiled is not counted
        if "operations" in plain:
            speed = plain["operations"] / found["seconds"]
            found["share_of_product"] = speed / result["product_per_second"]
            if peak is not None:
                found["share_of_peak"] = speed / peak


def tables(result: dict[str, Any]) -> Iterator[str]:
    """The lines of the tables, in Markdown, and how the targets are met."""
    yield result["machine"]
    for part in ("decoding", "decoding, compiled", "default"):
        rows = _rows(result, part)
        batches = sorted({row["images"] for row in rows})
        yield f"\n| {part}: ms (images a second) | " + " | ".join(map(str, batches)) + " |"
        yield "|---" * (len(batches) + 1) + "|"
        for way in dict.fromkeys(row["way"] for row in rows):
            cells = [_cell(rows, way, images) for images in batches]
            yield " | ".join(["| " + way, *cells]).rstrip() + " |"
    yield "\n| training | images a second | share of peak | of a large product | GiB |\n|---|---|---|---|---|"
    for name, found in result.items():
        if name.startswith("training") and "seconds" in found:
            shares = [
                f"{found[key]:.2f}" if key in found else "" for key in ("share_of_peak", "share_of_product")
            ]
            memory = f"{found['memory_gib']:.1f}" if "memory_gib" in found else ""
            yield f"| {name} | {found['images_per_second']:.0f} | {' | '.join(shares)} | {memory} |"
    yield from _targets(result)


def _rows(result: dict[str, Any], part: str) -> list[dict[str, Any]]:
    found = result.get(part)
    return [row for row in found if "way" in row] if isinstance(found, list) else []


def _cell(rows: Sequence[dict[str, Any]], way: str, images: int) -> str:
    for row in rows:
        if (row["way"], row["images"]) == (way, images):
            return "failed" if "failed" in row else f"{1000 * row['seconds']:.1f} ({row['per_second']:.0f})"
    return ""


def _targets(result: dict[str, Any]) -> Iterator[str]:
    """One image: exact at least as fast as GPT-2, fast three times; training at 0.4 of the peak."""
    rows = _rows(result, "decoding, compiled")
    alone = {row["way"]: row["seconds"] for row in rows if row["images"] == 1 and "seconds" in row}
    gpt2 = alone.get("GPT-2, static cache, compiled")
    for name, target in (("exact", 1), ("fast", 3)):
        ours = [seconds for way, seconds in alone.items() if way.startswith(name)]
        if gpt2 and ours:
            yield f"\n{name}, one image: {gpt2 / min(ours):.2f} times as fast as GPT-2 (target: {target})"
    shares = [found.get("share_of_peak", 0) for name, found in result.items() if name.startswith("training")]
    if any(shares):
        yield f"\ntraining: {max(shares):.2f} of the peak at most (target: 0.4)"


def main() -> None:
    """Measure, write the JSON after every part, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="paper", help="tiny: for a test without a GPU")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; eager: for a test")
    parser.add_argument("--without-compiling", action="store_true", help="leave the compiled ways out")
    parser.add_argument("--seconds", type=float, default=480.0, help="begin with nothing after these")
    parser.add_argument("--peak", type=float, help="the GPU's TFLOP/s in bfloat16, if its name is not known")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--resume", action="store_true", help="keep what is in the output, measure the rest")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch._dynamo.config.recompile_limit = 64  # blocks are compiled for many shapes, and as often
    device, size = torch.device(options.device), SIZES[options.size]
    found = json.loads(options.output.read_text()) if options.resume and options.output.exists() else {}
    parts = Parts(options.output, options.seconds, found)
    found.update(machine=describe_machine(), size=options.size, tokens=LENGTH)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32  # many CPUs have no bfloat16 products
    found["product_per_second"] = product_speed(device, kind)
    peak = options.peak
    if peak is None and device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        peak = next((speed for name, speed in PEAKS.items() if name in gpu), None)

    def train(how: str, images: int, *, trainable: bool) -> None:
        name = f"training, CLIP {'trained' if trainable else 'frozen'}, {how}, {images} images"
        job = lambda: measure_training(  # noqa: E731
            size, device, how, images, options.backend, trainable=trainable
        )
        if how != "compiled" or not options.without_compiling:
            parts.measure(name, job, COMPILING if how == "compiled" else 5.0)

    def decode(name: str, ways: Callable[[], Any], seconds: float) -> None:
        parts.measure(
            name,
            lambda: measure_decoding(ways(), size, device, lambda: parts.has_time(seconds)),
            seconds,
        )

    decode("decoding", lambda: decoding_ways(size, device), 5.0)
    photos = [Path(one) for one in find_images([PHOTOS])]
    parts.measure(
        "default", lambda: measure_default(size, device, photos, lambda: parts.has_time(20.0)), 20.0
    )
    most = size.training[0]
    for trainable in (True, False):
        for how in ("plain", "compiled"):
            train(how, most, trainable=trainable)
    torch.compiler.reset()
    if not options.without_compiling:
        decode("decoding, compiled", lambda: compiled_ways(size, device, options.backend), COMPILING)
    for trainable in (True, False):
        for how in ("attention written out", "one-hot"):
            train(how, most, trainable=trainable)
        for images in size.training[1:]:
            train("plain", images, trainable=trainable)
            train("compiled", images, trainable=trainable)
    add_shares(found, None if peak is None else 1e12 * peak)
    parts.write()
    print("\n".join(tables(found)))


if __name__ == "__main__":
    main()
