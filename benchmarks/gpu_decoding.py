"""The ways of decoding that `gpu.py` measures, from features to 12 tokens, in turns."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from decode_paper_size import EXACT, FAST, hugging_face, released_loop
from paper_size import build_model, now
from torch import Tensor
from transformers.generation.configuration_utils import CompileConfig

from ddcap.decoding.generate import generate
from ddcap.machine import computing
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures
from ddcap.model.loading import replay_cuda_graphs
from ddcap.settings import DecodingSettings, ModelSettings
from ddcap.training.state import compile_blocks

Way = Callable[[ImageFeatures], Tensor]
"""Captions images from their features: tokens (I, L)."""

WARM_UP = 3
"""Runs that are not timed: passes are recorded and compiled, for other shapes once more."""


@dataclass(frozen=True)
class Size:
    """A model's shape, and how much is measured.

    Attributes:
        model: the denoiser's settings.
        words: of the vocabulary.
        pixels: side of an image.
        width: of the image encoder.
        layers: of the image encoder.
        training: images of a step.
        batches: images that are captioned at once.
        runs: of everything.
    """

    model: ModelSettings
    words: int
    pixels: int
    width: int
    layers: int
    training: tuple[int, ...]
    batches: tuple[int, ...]
    runs: int


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


def decoding_ways(size: Size, device: torch.device) -> dict[str, Way]:
    """Each way that needs no compiling."""
    plain, replaying = (_eager(size, device) for _ in range(2))
    replay_cuda_graphs(replaying, "replaying")
    return {
        "exact": _ours(plain, EXACT),
        "fast": _ours(plain, FAST),
        "exact, CUDA graphs": _ours(replaying, EXACT),
        "fast, CUDA graphs": _ours(replaying, FAST),
        "released loop": lambda features: released_loop(plain, features),
        "GPT-2": _gpt2(size, device),
    }


def compiled_ways(size: Size, device: torch.device, backend: str) -> dict[str, Way]:
    """Each way that is compiled, the most important ones first, beside those with CUDA graphs alone."""
    replaying, both, compiled = (_eager(size, device) for _ in range(3))
    for model in (both, compiled):
        compile_blocks(model, backend)
    for model in (replaying, both):
        replay_cuda_graphs(model, "replaying")
    how = CompileConfig(backend=backend, mode="reduce-overhead" if backend == "inductor" else None)
    how._compile_all_devices = True
    static = {"cache_implementation": "static", "compile_config": how}
    return {
        "exact, CUDA graphs": _ours(replaying, EXACT),
        "fast, CUDA graphs": _ours(replaying, FAST),
        "GPT-2, static cache, compiled": _gpt2(size, device, **static),
        "exact, CUDA graphs, compiled": _ours(both, EXACT),
        "fast, CUDA graphs, compiled": _ours(both, FAST),
        "exact, compiled": _ours(compiled, EXACT),
        "fast, compiled": _ours(compiled, FAST),
    }


def _eager(size: Size, device: torch.device) -> DDCapModel:
    return model_of(size, trainable=False).to(device).eval()


def _ours(model: DDCapModel, settings: DecodingSettings) -> Way:
    return lambda features: generate(model, features, settings, model.mask_id - 1).tokens


def _gpt2(size: Size, device: torch.device, **options: Any) -> Way:
    """Hugging Face's GPT-2 with weights in the precision that it computes in; `options` of `generate`."""
    heads = max(2, size.width // 64)
    words = transformers.GPT2Config(
        add_cross_attention=True, vocab_size=size.words, n_embd=size.width, n_layer=size.layers, n_head=heads
    )
    eyes = transformers.ViTConfig(
        hidden_size=size.width, num_hidden_layers=1, num_attention_heads=heads
    )  # not used
    both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eyes, words)
    torch.manual_seed(0)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = transformers.VisionEncoderDecoderModel(both).to(device, kind).eval()

    def caption(features: ImageFeatures) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return hugging_face(model, ImageFeatures(features.memory.to(kind), None), **options)

    return caption


def measure_decoding(
    ways: dict[str, Way], size: Size, device: torch.device, has_time: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """A row for each batch size and way.

    Args:
        ways: take turns.
        size: of the model.
        device: that they run on.
        has_time: whether to begin with another way.

    Yields:
        Seconds of a batch (median, lowest, highest, and of the first run, in which passes are recorded or
        compiled), captions a second, how often a run waits for the GPU, and the share of captions equal to
        those of the first way of the same kind. With random weights words are nearly equally likely, and
        rounding decides.
    """
    for images in size.batches:
        features = features_of(size, images, device)
        jobs = {name: _job(way, features, device) for name, way in ways.items()}
        first: dict[str, float] = {}
        failed: dict[str, str] = {}
        tokens: dict[str, Tensor] = {}
        for name, job in jobs.items():
            if not has_time():
                failed[name] = "no time was left"
                continue
            begun = now(device)
            try:
                tokens[name] = job().cpu()
                first[name] = now(device) - begun
                for _ in range(WARM_UP - 1):
                    job()
            except Exception as error:  # one way that fails does not cost the others their GPU
                failed[name] = f"{type(error).__name__}: {error}"[:500]
        times: dict[str, list[float]] = {name: [] for name in jobs if name not in failed}
        for _ in range(size.runs):
            for name, found in times.items():
                begun = now(device)
                jobs[name]()
                found.append(now(device) - begun)
        for name, job in jobs.items():
            row: dict[str, Any] = {"way": name, "images": images}
            if name in failed:
                yield {**row, "failed": failed[name]}
                continue
            row.update(_summed(times[name]), first=first[name])
            row["per_second"] = images / row["seconds"]
            if device.type == "cuda":
                row["waits"] = waits_of(job)
            plainest = next(other for other in tokens if other.partition(",")[0] == name.partition(",")[0])
            if plainest != name:
                row["same_captions"] = float((tokens[plainest] == tokens[name]).all(dim=1).float().mean())
            yield row


def features_of(size: Size, images: int, device: torch.device) -> ImageFeatures:
    """Random features of images."""
    generator = torch.Generator().manual_seed(1)
    positions = (size.pixels // 16) ** 2
    memory = torch.randn(images, positions, size.width, generator=generator)
    return ImageFeatures(memory.to(device), torch.randn(images, 512, generator=generator).to(device))


def _job(way: Way, features: ImageFeatures, device: torch.device) -> Callable[[], Tensor]:
    def job() -> Tensor:
        with torch.no_grad(), computing(device, bfloat16=device.type == "cuda"):
            return way(features)

    return job


def waits_of(job: Callable[[], object]) -> int:
    """Count how often a job makes the host wait for a GPU, as torch sees it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            job()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in told)


def _summed(times: Sequence[float]) -> dict[str, float]:
    return {"seconds": statistics.median(times), "lowest": min(times), "highest": max(times)}
