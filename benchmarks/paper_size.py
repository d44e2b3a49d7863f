"""A training step at the paper's size, against a straightforward one-hot implementation.

    python benchmarks/paper_size.py [--captions 20] [--runs 5] [--threads 2] [--device cpu] [--peak TFLOPS]

12 layers, width 768, 50,257 words, 196 image positions, captions as long as COCO's. The straightforward way
draws x_t from log-probabilities of all V + 1 states at every position, and computes every one of 20
positions, padding included, up to the head. "Ours" is what `ddcap train` does, also with the blocks
compiled, with gradient checkpointing, and with five captions to an image. Each way runs in a process of its
own; memory is the most that a step allocates at once, beside weights, gradients and optimizer.

The last column is the share of the machine's speed: operations that the step needs (the products of forward
and backward pass, as torch counts them; what is computed again is not needed) by its time, over the
operations a second of a large bfloat16 matrix product measured in the same process, or over --peak, the
data sheet's number, for the usual model FLOP utilisation (MFU).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ddcap.data.batches import CaptionBatch
from ddcap.diffusion import Schedule
from ddcap.machine import describe_machine
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.checkpoint_files import StoredModel
from ddcap.model.config import ModelConfig
from ddcap.model.ddcap import DDCapModel
from ddcap.model.encoders import build_image_encoder
from ddcap.model.features import ImageFeatures
from ddcap.model.layers import recompute_blocks
from ddcap.settings import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings
from ddcap.training.loss import caption_loss, draw_noise
from ddcap.training.state import compile_blocks

LONGEST, VOCABULARY = 20, 50_257
_Model = TypeVar("_Model", bound=StoredModel)
WAYS = ("one-hot", "ours", "compiled", "checkpointing", "five per image")


def build_model(
    kind: type[_Model],
    *,
    model: ModelSettings | None = None,
    words: int = VOCABULARY,
    pixels: int = 224,
    width: int = 768,
    encoder_layers: int = 1,
    trainable: bool = False,
) -> _Model:
    """The caption model or the autoregressive one, by default of the paper's size, with random weights.

    Args:
        kind: of the model.
        model: its settings; None takes the paper's.
        words: of its vocabulary.
        pixels: side of an image.
        width: of the CLIP that encodes it.
        encoder_layers: of the CLIP; one shows its shapes, where features are given.
        trainable: whether the CLIP is trained along.
    """
    encoder = EncoderSettings(
        kind="clip", name="random", image_size=pixels, fit="crop", stored=True, trainable=trainable
    )
    architecture = {"hidden_size": width, "num_attention_heads": max(2, width // 64), "patch_size": 16}
    architecture.update(image_size=pixels, intermediate_size=4 * width, num_hidden_layers=encoder_layers)
    decoding = DecodingSettings()
    if kind is AutoregressiveModel:
        model = ModelSettings(kind="autoregressive", length_prediction=False, concentrated_attention=False)
        decoding = DecodingSettings(method="left_to_right", guidance=1.0)
    config = ModelConfig(words, encoder, model or ModelSettings(), DiffusionSettings(), decoding)
    return kind(config, build_image_encoder(encoder, pretrained=False, architecture=architecture))


def noise_one_hot(tokens: Tensor, timestep: Tensor, schedule: Schedule, words: int = VOCABULARY) -> Tensor:
    """x_t by the Gumbel-max trick over log q(x_t | x_0) of every state, (B, V + 1, L)."""
    shape = (-1, 1, 1)
    keep, replace, mask = (
        table[timestep.cpu()].to(tokens.device, torch.float32).log().view(shape)
        for table in (schedule.cumulative_keep, schedule.cumulative_replace, schedule.cumulative_mask)
    )
    one_hot = F.one_hot(tokens, words + 1).permute(0, 2, 1).float()
    log_x0 = one_hot.clamp(min=1e-30).log()
    words = torch.logaddexp(log_x0[:, :-1] + keep, replace.expand_as(log_x0[:, :-1]))
    log_xt = torch.cat([words, torch.logaddexp(log_x0[:, -1:], mask)], dim=1)
    gumbel = -(-torch.rand_like(log_xt).clamp(min=1e-30).log()).clamp(min=1e-30).log()
    return (log_xt + gumbel).argmax(dim=1)


def peak_memory(step: Callable[[], float], device: torch.device) -> float:
    """The most that is allocated at once in a step, GiB over what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes)) / 2**30


def product_speed(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        begun = now(device)
        one @ other
        times.append(now(device) - begun)
    return 2 * side**3 / min(times)


def now(device: torch.device) -> float:
    """Seconds, when the device is done with what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(way: str, captions: int, runs: int, device: torch.device) -> dict[str, float]:
    """Median seconds of a step and of its noising, peak memory above model and optimizer, operations."""
    speed = product_speed(device)
    torch.manual_seed(0)
    model = build_model(DDCapModel).to(device).train()
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()  # its moments belong to the start
    if way == "compiled":
        compile_blocks(model)
    if way == "checkpointing":
        recompute_blocks(model)
    images = captions // 5 if way == "five per image" else captions
    lengths = (11.5 + 2.4 * torch.randn(captions)).round().long().clamp(6, LONGEST).to(device)
    tokens = torch.randint(VOCABULARY, (captions, LONGEST), device=device)
    features = ImageFeatures(torch.rand(images, 196, 768).to(device), torch.rand(images, 512).to(device))
    real = torch.arange(LONGEST, device=device) < lengths.unsqueeze(1)
    straightforward = way == "one-hot"
    if not straightforward:
        longest = int(lengths.max())
        tokens, real = tokens[:, :longest], real[:, :longest]
    positions = real.flatten().nonzero().squeeze(1)
    names = tuple(str(image) for image in range(images))
    batch = CaptionBatch(None, None, None, tokens, lengths, positions, names, tuple(range(images)))
    noising, whole = [], []

    def step() -> float:
        """A step; seconds of its noising."""
        optimizer.zero_grad(set_to_none=False)
        begun = now(device)
        if straightforward:
            timestep = torch.randint(20, (captions,), device=device)
            noised = noise_one_hot(tokens, timestep, model.schedule)
            noised_after = now(device) - begun
            with torch.autocast(device.type, torch.bfloat16):
                every = torch.full_like(lengths, LONGEST)  # nothing is left out
                hidden = model(noised, timestep, every, model.keys_values(features))
                logits = model.denoiser.logits(hidden)
                loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
                loss = loss[positions].mean()
        else:
            noise = draw_noise(
                torch.Generator().manual_seed(len(whole)),
                model.schedule,
                images=images,
                captions_per_image=captions // images,
                length=LONGEST,
            ).of(range(images), device)
            noise.add_to(tokens, model.schedule)  # once more in `caption_loss`
            noised_after = now(device) - begun
            with torch.autocast(device.type, torch.bfloat16):
                loss = caption_loss(model, batch, features, noise).token
        loss.backward()
        optimizer.step()
        return noised_after

    step()
    memory = peak_memory(step, device)
    operations = 0
    if way != "compiled":
        with FlopCounterMode(display=False) as counter:
            step()
        operations = counter.get_total_flops()
    for _ in range(runs + 1):
        begun = now(device)
        noising.append(step())
        whole.append(now(device) - begun)
    return {
        "noising": statistics.median(noising[1:]),
        "step": statistics.median(whole[1:]),
        "memory": memory,
        "operations": operations,
        "speed": speed,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=20, help="a step, a multiple of 5")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device in bfloat16, from its data sheet")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.captions % 5:
        parser.error(f"--captions {options.captions}: five captions per image need a multiple of 5")
    torch.set_num_threads(options.threads)
    if options.way is not None:
        result = measure(options.way, options.captions, options.runs, torch.device(options.device))
        print(json.dumps(result))
        return
    print(f"{describe_machine()}; {options.captions} captions, bfloat16")
    speed_of = "peak" if options.peak else "a large product"
    print(
        f"| way | noising | step, relative | peak memory | captions a second | share of {speed_of}'s speed |"
    )
    print("|---|---|---|---|---|---|")
    results = {}
    for way in options.ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    for way, result in results.items():
        share = 100 * result["noising"] / result["step"]
        relative = result["step"] / results[options.ways[0]]["step"]
        plain = results.get("five per image" if way == "five per image" else "ours", result)
        peak = 1e12 * options.peak if options.peak else result["speed"]
        used = 100 * plain["operations"] / result["step"] / peak
        print(
            f"| {way} | {share:.2f} % | {relative:.2f} | {result['memory']:.2f} GiB | "
            f"{options.captions / result['step']:.1f} | {used:.0f} % |"
        )


if __name__ == "__main__":
    main()
