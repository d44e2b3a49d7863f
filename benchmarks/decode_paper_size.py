"""Time a caption at the paper's size: this package, the release's loop, Hugging Face's captioners.

    python benchmarks/decode_paper_size.py [--batches 1 8 64] [--rounds 5] [--ways NAME ...] [--bfloat16]

12 layers, width 768, 50,257 words, 196 image positions (BLIP: 30,524 words), all with random weights: time is
what counts, not words. Every caption has 12 tokens, about COCO's mean. The image encoder is the same for all
and is timed on a row of its own; the others start from its output.

- exact: guidance 1.17, one token a step, as in the paper; PyTorch and ONNX graphs.
- fast: four steps, no token twice in a step, no guidance.
- released loop: as the authors' code decodes: one token a step, an image pass and an image-free pass, each
  with the memory's keys and values anew, logits and softmax of all words at all positions.
- twin: the autoregressive model of the same size with its cache.
- GPT-2 and BLIP: `transformers`' ViT + GPT-2 and BLIP-base text decoder, greedy, with their caches.

Where there are several images, ONNX's are shared out to the cores, as `Captioner` does in bulk. All ways of
a batch size run by turns in one process; medians with the lowest and the highest. Memory is the peak of a
process of its own that runs the one way. "Share of the machine" is the larger of two: operations over those
of a large matrix product a second (for int8, of integers), bytes of weights and keys over those of a large
read.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from decode import run_cold
from paper_size import build_model, product_speed
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.decoding.schedulers.best_first import plan_steps
from ddcap.machine import ahead, computing, describe_machine
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures
from ddcap.model.guidance import guide
from ddcap.model.onnx_export import export_onnx
from ddcap.model.onnx_model import OnnxModel
from ddcap.presets import PRESETS
from ddcap.settings import DecodingSettings, DiffusionSettings

LENGTH, GUIDANCE = 12, 1.17
EXACT = DecodingSettings(length=LENGTH, guidance=GUIDANCE)
FAST = DecodingSettings(length=LENGTH, **PRESETS["diffusion"]["fast"])
WAYS = (
    "released loop",
    "exact, PyTorch",
    "exact, ONNX float32",
    "exact, ONNX int8",
    "fast, PyTorch",
    "fast, ONNX float32",
    "fast, ONNX int8",
    "twin, greedy",
    "twin, 3 beams",
    "twin, 5 beams",
    "GPT-2, greedy",
    "BLIP, greedy",
    "encoder, PyTorch",
    "encoder, ONNX float32",
)
_Job = Callable[[], Any]


class Ways:
    """The ways, made when they are first asked for.

    Args:
        folder: where the ONNX graphs are.
        bfloat16: what PyTorch computes in.
    """

    def __init__(self, folder: Path, *, bfloat16: bool) -> None:
        self.folder, self.bfloat16 = folder, bfloat16
        self._models: dict[str, Any] = {}

    def job(self, way: str, images: int) -> _Job:
        """Make what captions `images` images in this way."""
        features = random_features(images)
        name, _, how = way.partition(", ")
        if name == "encoder":
            pixels = np.random.default_rng(0).random((images, 3, 224, 224), np.float32)
            model = self._model("ddcap" if how == "PyTorch" else "float32")
            return self._in_precision(lambda: model.encode(pixels))
        if "ONNX" in how:
            settings = EXACT if name == "exact" else FAST
            arrays = ImageFeatures(features.memory.numpy(), features.summary.numpy())
            return self._onnx_job(how.split()[-1], arrays, settings)
        if name in ("exact", "fast"):
            model, settings = self._model("ddcap"), EXACT if name == "exact" else FAST
            return self._in_precision(lambda: generate(model, features, settings, model.mask_id - 1))
        if name == "released loop":
            model = self._model("ddcap")
            return self._in_precision(lambda: released_loop(model, features))
        if name == "twin":
            beams = 1 if how == "greedy" else int(how.split()[0])
            settings = DecodingSettings(
                method="left_to_right", guidance=1.0, length=LENGTH, exact_length=True, beams=beams
            )
            model = self._model("twin")
            return self._in_precision(lambda: generate(model, features, settings, model.mask_id - 1))
        model = self._model(name)
        return self._in_precision(lambda: hugging_face(model, features))

    def _onnx_job(self, precision: str, features: ImageFeatures, settings: DecodingSettings) -> _Job:
        parts = min(os.cpu_count() or 1, features.images)
        model = self._model(precision if parts == 1 else f"{precision} in bulk")

        def caption(part: slice) -> Any:
            one = ImageFeatures(features.memory[part], features.summary[part])
            return generate(model, one, settings, model.mask_id - 1)

        edges = [features.images * part // parts for part in range(parts + 1)]
        slices = [slice(*pair) for pair in itertools.pairwise(edges)]
        if parts == 1:
            return lambda: caption(slices[0])
        return lambda: list(ahead(caption, slices, parts))

    def _in_precision(self, work: _Job) -> _Job:
        def job() -> Any:
            with torch.no_grad(), computing(torch.device("cpu"), bfloat16=self.bfloat16):
                return work()

        return job

    def _model(self, name: str) -> Any:
        if name not in self._models:
            self._models[name] = self._build(name)
        return self._models[name]

    def _build(self, name: str) -> Any:
        torch.manual_seed(0)
        if name == "ddcap":
            return build_model(DDCapModel, encoder_layers=12).eval()
        if name == "twin":
            return build_model(AutoregressiveModel).eval()
        if name == "GPT-2":
            words = transformers.GPT2Config(add_cross_attention=True)
            shape = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
                transformers.ViTConfig(), words
            )
            return transformers.VisionEncoderDecoderModel(shape).eval()
        if name == "BLIP":
            return transformers.BlipForConditionalGeneration(transformers.BlipConfig()).eval()
        precision, _, bulk = name.partition(" ")
        return OnnxModel(self.folder, precision, threads=1 if bulk else None)


def write_graphs(folder: Path) -> None:
    """The ONNX graphs of the model with random weights."""
    torch.manual_seed(0)
    build_model(DDCapModel, encoder_layers=12).save_pretrained(folder, torch.int8)
    CaptionTokenizer.gpt2().save(folder)
    export_onnx(folder)


def random_features(images: int) -> ImageFeatures:
    """Draw what a ViT-B/16 sees of images: 196 positions and a summary."""
    generator = torch.Generator().manual_seed(1)
    memory, summary = (
        torch.randn(images, 196, 768, generator=generator),
        torch.randn(images, 512, generator=generator),
    )
    return ImageFeatures(memory, summary)


def released_loop(model: DDCapModel, features: ImageFeatures) -> Tensor:
    """The authors' way of best-first inference, plainly: nothing is kept from step to step."""
    images, steps, device = features.images, model.config.diffusion.steps, features.memory.device
    tokens = torch.full((images, LENGTH), model.mask_id, device=device)
    lengths = torch.full((images,), LENGTH, device=device)
    no_image = torch.zeros(images, dtype=torch.bool, device=device)
    for step in range(LENGTH):
        timestep = torch.full((images,), min((LENGTH - step) * steps // LENGTH, steps - 1), device=device)
        branches = []
        for use_image in (None, no_image):
            keys_values = model.project_memory(features, use_image)
            hidden = model(tokens, timestep, lengths, keys_values)
            branches.append(model.denoiser.logits(hidden).float().log_softmax(dim=2))
        confidence, chosen = guide(*branches, GUIDANCE).softmax(dim=2).max(dim=2)
        confidence = confidence.masked_fill(tokens != model.mask_id, -1)
        place = confidence.argmax(dim=1, keepdim=True)
        tokens = tokens.scatter(1, place, chosen.gather(1, place))
    return tokens


def hugging_face(model: Any, features: ImageFeatures, **options: Any) -> Tensor:
    """Greedy captions of exactly `LENGTH` tokens; `options` are those of transformers' `generate`."""
    limits: dict[str, Any] = {"min_new_tokens": LENGTH, "max_new_tokens": LENGTH, "do_sample": False}
    limits.update(num_beams=1, **options)
    if isinstance(model, transformers.BlipForConditionalGeneration):
        start = torch.full((features.images, 1), model.config.text_config.bos_token_id)
        found: Tensor = model.text_decoder.generate(
            input_ids=start, encoder_hidden_states=features.memory, eos_token_id=0, pad_token_id=0, **limits
        )
        return found
    seen = BaseModelOutput(last_hidden_state=features.memory)
    found = model.generate(
        encoder_outputs=seen,
        decoder_start_token_id=model.decoder.config.vocab_size - 1,
        eos_token_id=model.decoder.config.vocab_size - 1,
        pad_token_id=model.decoder.config.vocab_size - 1,
        **limits,
    )
    return found


def integer_speed() -> float:
    """Operations a second of a large product of 8-bit integers."""
    one, other = (torch.randint(-127, 128, (2048, 2048), dtype=torch.int8) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        torch._int_mm(one, other)
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def read_speed() -> float:
    """Bytes a second of a large read."""
    long = torch.randn(1 << 27)  # 512 MB
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        long.sum()
        seconds.append(time.perf_counter() - start)
    return 4 * len(long) / min(seconds)


def needed(way: str, images: int) -> tuple[float, float] | None:
    """Operations and bytes of weights and keys that a way of ours cannot do without."""
    name, _, how = way.partition(", ")
    if name not in ("exact", "fast"):
        return None
    settings, branches = (EXACT, 2) if name == "exact" else (FAST, 1)
    one = np.array([LENGTH])
    quotas = plan_steps(one, one, DiffusionSettings().steps, settings.steps).quotas
    steps, asked = len(quotas), sum(int(quotas[step:].sum()) for step in range(len(quotas)))
    block = (4 + 2 + 8) * 768**2  # self-attention, cross-attention less its keys and values, MLP
    head, memory = 768 * 50_257, 196 * 768
    rows = images * LENGTH
    attention = 2 * 2 * rows * (196 + LENGTH) * 768
    operations = steps * branches * 12 * (2 * rows * block + attention) + branches * 2 * images * asked * head
    project = 2 * images * 196 * (2 * 768 * 384 + 12 * 2 * 768**2)
    size = 1 if how.endswith("int8") else 4
    keys = branches * 12 * 2 * memory * 4 * (images if branches == 1 else (images + 1) / 2)
    return operations + project, steps * (size * (12 * block + head) + keys)


@contextmanager
def graphs_folder(given: Path | None) -> Iterator[Path]:
    """`given`, or one that is deleted at the end."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--bfloat16", action="store_true", help="PyTorch computes in bfloat16, not float32")
    parser.add_argument("--graphs", type=Path, help="folder for the ONNX graphs, kept for another run")
    parser.add_argument("--only", choices=[*WAYS, "write graphs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with graphs_folder(options.graphs) as folder:
        ways = Ways(folder, bfloat16=options.bfloat16)
        if options.only == "write graphs":
            write_graphs(folder)
            return
        if options.only is not None:
            ways.job(options.only, options.batches[0])()
            return
        # first: what this process takes would count as the others', until they start their own program
        command = [sys.executable, __file__, "--graphs", str(folder)]
        command += ["--bfloat16"] if options.bfloat16 else []
        if not (folder / "step.onnx").exists():
            run_cold([*command, "--only", "write graphs"])
        memory = {
            (way, images): run_cold([*command, "--only", way, "--batches", str(images)])[1]
            for images in options.batches
            for way in options.ways
        }
        print(f"{describe_machine()}; PyTorch in {'bfloat16' if options.bfloat16 else 'float32'}")
        kind = torch.bfloat16 if options.bfloat16 else torch.float32
        operations, integers = product_speed(torch.device("cpu"), kind), integer_speed()
        single = product_speed(torch.device("cpu"), torch.float32)
        read = read_speed()
        print(
            f"a large product: {operations / 1e9:.0f} GFLOP/s, in float32 {single / 1e9:.0f}, "
            f"of 8-bit integers {integers / 1e9:.0f}; a large read: {read / 1e9:.1f} GB/s"
        )
        for images in options.batches:
            times = by_turns({way: ways.job(way, images) for way in options.ways}, options.rounds)
            print(f"\n| {images} at once | ms | of GPT-2's | peak memory, MB | share of the machine |")
            print("|---|---|---|---|---|")
            middle = {way: statistics.median(values) for way, values in times.items()}
            for way, values in times.items():
                spread = f"{middle[way]:.0f} [{min(values):.0f}, {max(values):.0f}]"
                ratio = f"{middle[way] / middle['GPT-2, greedy']:.2f}" if "GPT-2, greedy" in middle else ""
                least, share = needed(way, images), ""
                if least is not None:
                    speed = integers if "int8" in way else single if "ONNX" in way else operations
                    seconds = max(least[0] / speed, least[1] / read)
                    share = f"{100_000 * seconds / middle[way]:.0f} %"
                print(f"| {way} | {spread} | {ratio} | {memory[way, images]:.0f} | {share} |", flush=True)


def by_turns(jobs: dict[str, _Job], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each job in each round; once before, all of them run unmeasured."""
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    main()
