"""Measure what padding and torch's fused attention cost in a training step of the default model on the CPU.

    python benchmarks/training_step.py [--threads 2] [--runs 9]

Times forward and backward of one step (32 images, 5 captions each, as long as Flickr8k's) with the padding
computed or left out, and with attention fused or written out, in turn; prints medians relative to the
fastest.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.captioner import Captioner
from ddcap.data.batches import CaptionBatch
from ddcap.machine import describe_machine
from ddcap.model import blocks, ddcap
from ddcap.model.features import ImageFeatures
from ddcap.training.loss import Noise, caption_loss, draw_noise

IMAGES, CAPTIONS, LONGEST = 32, 160, 20


def fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, dropout: float
) -> Tensor:
    """Torch's own kernel, as `attend` is called."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Captioner.from_pretrained(runtime="torch").model.train()
    generator = torch.Generator().manual_seed(0)
    lengths = (12.3 + 3 * torch.randn(CAPTIONS, generator=generator)).round().long().clamp(6, LONGEST)
    tokens = torch.randint(model.config.vocabulary_size, (CAPTIONS, int(lengths.max())), generator=generator)
    real = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
    memory = torch.rand(IMAGES, model.encoder.memory_positions, model.encoder.memory_width)
    features = ImageFeatures(memory, torch.rand(IMAGES, model.encoder.summary_width))
    positions = real.flatten().nonzero().squeeze(1)
    batch = CaptionBatch(None, None, None, tokens, lengths, positions, (), ())

    def noise() -> Noise:
        drawn = draw_noise(
            generator, model.schedule, images=IMAGES, captions_per_image=CAPTIONS // IMAGES, length=LONGEST
        )
        return drawn.of(range(IMAGES), model.device)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            losses = caption_loss(model, batch, features, noise(), image_free_probability=0.2)
            (losses.token + 0.3 * losses.length).backward()
        model.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    times: dict[tuple[bool, bool], list[float]] = {}
    for _ in range(options.runs + 1):
        for pads, fuses in itertools.product((True, False), repeat=2):
            packing = patch.object(ddcap, "Packing", lambda _: None) if pads else patch.dict({})
            attention = patch.object(blocks, "attend", fused) if fuses else patch.dict({})
            with packing, attention:
                times.setdefault((pads, fuses), []).append(step())
    medians = {key: statistics.median(values[1:]) for key, values in times.items()}
    fastest = min(medians.values())
    print(describe_machine())
    print("| padding | attention | time of a step, relative |\n|---|---|---|")
    for (pads, fuses), median in medians.items():
        names = "computed" if pads else "left out", "fused" if fuses else "written out"
        print(f"| {names[0]} | {names[1]} | {median / fastest:.2f} |")


if __name__ == "__main__":
    main()
