"""Measure a GPU: a training step and captions at the paper's size, and the default's captions.

    python benchmarks/gpu.py [--device cuda] [--output gpu.json]

One command, one JSON; it takes minutes and tells the seconds of each part. All weights are random but the
default's. What fails is written down as such, and the rest goes on.

- training: ViT-B/16 trained along or frozen, batch as the recipe, bfloat16; plainly, with blocks compiled,
  and with attention written out. Images a second, memory, and the share of the speed of a large bfloat16
  product, measured in the same run.
- decoding, from features, 12 tokens: exact (guidance 1.17, one token a step), fast (four steps, `distinct`),
  both compiled as well, the released code's loop, and Hugging Face's GPT-2, greedy, with its ordinary cache
  and with a static one, compiled. All ways of a batch size take turns.
- the default: photographs a second, from pixels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from decode_paper_size import EXACT, FAST, LENGTH, hugging_face, released_loop
from paper_size import build_model, now, product_speed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddcap import Captioner
from ddcap.data.batches import CaptionBatch
from ddcap.data.images import find_images, load_image
from ddcap.decoding.generate import generate
from ddcap.machine import computing, describe_machine
from ddcap.model import blocks
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings, ModelSettings
from ddcap.training.loss import batch_features, caption_loss, draw_noise
from ddcap.training.state import compile_blocks

PHOTOS = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Size:
    """A model's shape, and how much is measured."""

    model: ModelSettings
    words: int
    pixels: int
    width: int
    layers: int
    batch: int
    batches: tuple[int, ...]
    runs: int


SIZES = {
    "paper": Size(ModelSettings(), 50_257, 224, 768, 12, 64, (1, 8, 64, 512), 5),
    # for a test without a GPU
    "tiny": Size(ModelSettings(width=32, layers=2, heads=2, max_length=20), 60, 32, 32, 2, 4, (1, 2), 1),
}


def model_of(size: Size, *, trainable: bool) -> DDCapModel:
    """A model with random weights, its CLIP included."""
    torch.manual_seed(0)
    return build_model(
        DDCapModel,
        model=size.model,
        words=size.words,
        pixels=size.pixels,
        width=size.width,
        encoder_layers=size.layers,
        trainable=trainable,
    )


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


def measure_training(size: Size, device: torch.device, how: str, *, trainable: bool) -> dict[str, float]:
    """Images a second of a step with one caption an image, peak memory, operations a second."""
    model = model_of(size, trainable=trainable).to(device).train()
    model.encoder.requires_grad_(trainable)
    if how == "compiled":
        compile_blocks(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    images, longest = size.batch, 20
    lengths = (11.5 + 2.4 * torch.randn(images)).round().long().clamp(6, longest).to(device)
    tokens = torch.randint(size.words, (images, int(lengths.max())), device=device)
    positions = (
        (torch.arange(tokens.shape[1], device=device) < lengths[:, None]).flatten().nonzero().squeeze(1)
    )
    pixels = torch.randn(images, 3, size.pixels, size.pixels, device=device)
    names = tuple(map(str, range(images)))
    batch = CaptionBatch(pixels, None, None, tokens, lengths, positions, names, tuple(range(images)))

    def step() -> None:
        optimizer.zero_grad()
        noise = draw_noise(
            torch.Generator().manual_seed(0),
            model.schedule,
            images=images,
            captions_per_image=1,
            length=longest,
        ).of(range(images), device)
        with computing(device, bfloat16=device.type == "cuda"):
            features = batch_features(model, batch)
            loss = caption_loss(model, batch, features, noise).token
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


def decoding_ways(
    size: Size, device: torch.device, *, compiling: bool
) -> dict[str, Callable[[ImageFeatures], object]]:
    """Each way to caption images from their features."""
    plain = model_of(size, trainable=False).to(device).eval()
    shape = {"n_embd": size.width, "n_layer": size.layers, "n_head": max(2, size.width // 64)}
    words = transformers.GPT2Config(add_cross_attention=True, vocab_size=size.words, **shape)
    eyes = transformers.ViTConfig(
        hidden_size=size.width, num_hidden_layers=1, num_attention_heads=max(2, size.width // 64)
    )
    both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eyes, words)
    gpt2 = transformers.VisionEncoderDecoderModel(both).to(device).eval()

    def ours(model: DDCapModel, settings: DecodingSettings) -> Callable[[ImageFeatures], object]:
        return lambda features: generate(model, features, settings, model.mask_id - 1)

    ways: dict[str, Callable[[ImageFeatures], object]] = {
        "exact": ours(plain, EXACT),
        "fast": ours(plain, FAST),
        "released loop": lambda features: released_loop(plain, features),
        "GPT-2": lambda features: hugging_face(gpt2, features),
        "GPT-2, static cache": lambda features: hugging_face(gpt2, features, cache_implementation="static"),
    }
    if compiling:
        compiled = model_of(size, trainable=False).to(device).eval()
        compile_blocks(compiled)
        ways.update({"exact, compiled": ours(compiled, EXACT), "fast, compiled": ours(compiled, FAST)})
    return ways


def measure_decoding(size: Size, device: torch.device, *, compiling: bool) -> list[dict[str, Any]]:
    """A row for each batch size and way."""
    ways = decoding_ways(size, device, compiling=compiling)
    rows: list[dict[str, Any]] = []
    positions = (size.pixels // 16) ** 2
    for images in size.batches:
        features = ImageFeatures(
            torch.randn(images, positions, size.width, device=device), torch.randn(images, 512, device=device)
        )
        jobs = {name: _job(way, features, device) for name, way in ways.items()}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        failed: dict[str, str] = {}
        for turn in range(size.runs + 3):
            for name, job in jobs.items():
                if name in failed:
                    continue
                begun = now(device)
                error = _error_of(job)
                if error is not None:
                    failed[name] = error
                elif turn >= 3:
                    times[name].append(now(device) - begun)
        for name, found in times.items():
            row: dict[str, Any] = {"way": name, "images": images}
            if name in failed:
                row["failed"] = failed[name]
            else:
                seconds = statistics.median(found)
                row.update(
                    seconds=seconds, lowest=min(found), highest=max(found), per_second=images / seconds
                )
            rows.append(row)
            print(row, flush=True)
    return rows


def _job(
    way: Callable[[ImageFeatures], object], features: ImageFeatures, device: torch.device
) -> Callable[[], None]:
    def job() -> None:
        with torch.no_grad(), computing(device, bfloat16=device.type == "cuda"):
            way(features)

    return job


def measure_default(size: Size, device: torch.device, photos: Sequence[Path]) -> dict[str, float]:
    """Photographs a second of the default, decoded from files that are read before."""
    captioner = Captioner.from_pretrained(device=str(device), runtime="torch")
    images = [load_image(photo) for photo in photos]
    count = max(size.batches)
    batch = (images * (count // len(images) + 1))[:count]
    times = _times(lambda: captioner(batch, batch_size=count), size.runs, device)
    return {"images": count, "per_second": count / times["seconds"], **times}


def _times(job: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    job()
    found = []
    for _ in range(runs):
        begun = now(device)
        job()
        found.append(now(device) - begun)
    return {"seconds": statistics.median(found), "lowest": min(found), "highest": max(found)}


def _error_of(job: Callable[[], object]) -> str | None:
    """Run a job and tell what went wrong, if anything did: one way does not cost the others their GPU."""
    try:
        job()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return None


def main() -> None:
    """Measure, write the JSON after every part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="paper", help="tiny: for a test without a GPU")
    parser.add_argument("--without-compiling", action="store_true", help="leave the compiled ways out")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    device, size = torch.device(options.device), SIZES[options.size]
    result: dict[str, Any] = {"machine": describe_machine(), "size": options.size, "tokens": LENGTH}
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32  # many CPUs have no bfloat16 products
    result["product_per_second"] = product_speed(device, kind)

    def part(name: str, measure: Callable[[], object]) -> None:
        begun = time.perf_counter()

        def keep() -> None:
            result[name] = measure()

        error = _error_of(keep)
        if error is not None:
            result[name] = {"failed": error}
        print(f"{name}: {time.perf_counter() - begun:.0f} s, {result[name]}", flush=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")

    for trainable in (False, True):
        for how in ("plain", "compiled", "attention written out"):
            if how == "compiled" and options.without_compiling:
                continue
            name = f"training, CLIP {'trained' if trainable else 'frozen'}, {how}"
            part(
                name,
                lambda how=how, trainable=trainable: measure_training(size, device, how, trainable=trainable),
            )
    for name, found in result.items():
        plain = result.get(f"{name.rpartition(', ')[0]}, plain", {})  # what is compiled is not counted
        if name.startswith("training") and "seconds" in found and "operations" in plain:
            speed = plain["operations"] / found["seconds"]
            found["share_of_product"] = speed / result["product_per_second"]
    part("decoding", lambda: measure_decoding(size, device, compiling=not options.without_compiling))
    part("default", lambda: measure_default(size, device, [Path(one) for one in find_images([PHOTOS])]))


if __name__ == "__main__":
    main()
