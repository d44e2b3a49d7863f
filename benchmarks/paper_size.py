"""A training step at the paper's size, against a straightforward one-hot implementation.

    python benchmarks/paper_size.py [--captions 16] [--runs 5] [--threads 2] [--device cpu]

12 layers, width 768, 50,257 words, 196 image positions, captions as long as COCO's. The straightforward way
draws x_t from log-probabilities of all V + 1 states at every position, and computes every one of 20
positions, padding included, up to the head. Each way runs in a process of its own; memory is its peak over
what model and optimizer take.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.diffusion.schedule import Schedule
from ddcap.diffusion.transition import q_sample
from ddcap.machine import describe_machine
from ddcap.model.ddcap import DDCapModel
from ddcap.model.image_encoder import ImageFeatures, build_image_encoder
from ddcap.model.stored_model import ModelConfig
from ddcap.recipe import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings

LONGEST, VOCABULARY = 20, 50_257


def build_model() -> DDCapModel:
    """The caption model; of the encoder, whose features are given, one layer is there for the shapes."""
    encoder = EncoderSettings(kind="clip", name="one layer", image_size=224, fit="crop")
    architecture = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "patch_size": 16}
    config = ModelConfig(VOCABULARY, encoder, ModelSettings(), DiffusionSettings(), DecodingSettings())
    return DDCapModel(config, build_image_encoder(encoder, pretrained=False, architecture=architecture))


def noise_one_hot(tokens: Tensor, timestep: Tensor, schedule: Schedule) -> Tensor:
    """x_t by the Gumbel-max trick over log q(x_t | x_0) of every state, (B, V + 1, L)."""
    shape = (-1, 1, 1)
    keep, replace, mask = (
        table[timestep.cpu()].to(tokens.device, torch.float32).log().view(shape)
        for table in (schedule.cumulative_keep, schedule.cumulative_replace, schedule.cumulative_mask)
    )
    one_hot = F.one_hot(tokens, VOCABULARY + 1).permute(0, 2, 1).float()
    log_x0 = one_hot.clamp(min=1e-30).log()
    words = torch.logaddexp(log_x0[:, :-1] + keep, replace.expand_as(log_x0[:, :-1]))
    log_xt = torch.cat([words, torch.logaddexp(log_x0[:, -1:], mask)], dim=1)
    gumbel = -(-torch.rand_like(log_xt).clamp(min=1e-30).log()).clamp(min=1e-30).log()
    return (log_xt + gumbel).argmax(dim=1)


def peak_memory(device: torch.device) -> float:
    """GiB, of this process or on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(way: str, captions: int, runs: int, device: torch.device) -> dict[str, float]:
    """Median seconds of a step and of its noising, and the peak memory above model and optimizer."""
    torch.manual_seed(0)
    model = build_model().to(device).train()
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()  # its moments belong to the start
    lengths = (11.5 + 2.4 * torch.randn(captions)).round().long().clamp(6, LONGEST).to(device)
    tokens = torch.randint(VOCABULARY, (captions, LONGEST), device=device)
    features = ImageFeatures(torch.rand(captions, 196, 768).to(device), torch.rand(captions, 512).to(device))
    real = torch.arange(LONGEST, device=device) < lengths.unsqueeze(1)
    straightforward = way == "one-hot"
    if not straightforward:
        longest = int(lengths.max())
        tokens, real = tokens[:, :longest], real[:, :longest]
    positions = real.flatten().nonzero().squeeze(1)
    start = peak_memory(device)
    noising, whole = [], []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(runs + 1):
        optimizer.zero_grad(set_to_none=False)
        begun = now()
        timestep = torch.randint(20, (captions,), device=device)
        if straightforward:
            noised = noise_one_hot(tokens, timestep, model.schedule)
        else:
            noised = q_sample(tokens, timestep, model.schedule)
        noising.append(now() - begun)
        with torch.autocast(device.type, torch.bfloat16):
            if straightforward:
                every = torch.full_like(lengths, LONGEST)  # nothing is left out
                logits = model(noised, timestep, every, features).logits
                loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
                loss = loss[positions].mean()
            else:
                logits = model(noised, timestep, lengths, features, positions=positions).logits
                loss = F.cross_entropy(logits.float(), tokens.flatten()[positions])
        loss.backward()
        optimizer.step()
        whole.append(now() - begun)
    return {
        "noising": statistics.median(noising[1:]),
        "step": statistics.median(whole[1:]),
        "memory": peak_memory(device) - start,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=["one-hot", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way is not None:
        result = measure(options.way, options.captions, options.runs, torch.device(options.device))
        print(json.dumps(result))
        return
    print(f"{describe_machine()}; {options.captions} captions, bfloat16")
    print("| way | noising, share of the step | step, relative | peak memory over the start |")
    print("|---|---|---|---|")
    results = {}
    for way in ("one-hot", "ours"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    for way, result in results.items():
        share = 100 * result["noising"] / result["step"]
        relative = result["step"] / results["ours"]["step"]
        print(f"| {way} | {share:.2f} % | {relative:.2f} | {result['memory']:.2f} GiB |")


if __name__ == "__main__":
    main()
