"""Time of captioning one image, by stage, on the CPU.

    python benchmarks/caption_speed.py [--model MODEL] [--precision auto] [--threads 2] [--runs 30]

Every run captions the image from its file; the table gives median, 10th and 90th percentile in milliseconds.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch

from ddcap.captioner import Captioner
from ddcap.data.images import load_image
from ddcap.decoding.generate import choose_lengths, decode, keep_likeliest, start_tokens
from ddcap.machine import describe_machine

PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "chelsea.jpg"


@torch.inference_mode()
def time_stages(captioner: Captioner, photo: str) -> dict[str, float]:
    """Milliseconds of every stage of one caption."""
    marks = [("", time.perf_counter())]

    def mark(stage: str) -> None:
        marks.append((stage, time.perf_counter()))

    model, decoding = captioner.model, captioner.decoding
    image = load_image(photo)
    mark("read the file")
    pixels = model.encoder.preprocessing(image).unsqueeze(0)
    mark("resize, normalise")
    with captioner.computing():
        features = model.encoder(pixels)
    mark("image encoder")
    lengths = choose_lengths(model, features, decoding, decoding.candidates)
    tokens, count = start_tokens(lengths, model.mask_id), len(lengths)
    mark("length head")
    end_id = captioner.tokenizer.end_id
    with captioner.computing():
        result = decode(model, features, tokens, lengths, decoding, end_id, captions_per_image=count)
    result = keep_likeliest(result, count, 1, decoding.length_penalty)
    mark(f"denoise {count} candidates, {len(result.timesteps)} steps")
    captioner.tokenizer.decode(result.tokens[0].tolist())
    mark("tokens to text")
    return {stage: 1000 * (now - before) for (_, before), (stage, now) in itertools.pairwise(marks)}


def time_call(captioner: Captioner, photo: str) -> float:
    """Milliseconds of `captioner(photo)`, trace included."""
    start = time.perf_counter()
    captioner(photo)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--image", default=str(PHOTO))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    captioner = Captioner.from_pretrained(options.model, precision=options.precision)
    for _ in range(3):
        captioner(options.image)
    stages = [time_stages(captioner, options.image) for _ in range(options.runs)]
    rows = {stage: [run[stage] for run in stages] for stage in stages[0]}
    rows["captioner(photo), whole call"] = [time_call(captioner, options.image) for _ in range(options.runs)]
    print(f"{describe_machine()}, {captioner.precision}")
    print(f"{Path(options.image).name}: {captioner(options.image)[0].text}")
    print(f"{'stage':<30} {'median':>8} {'p10':>8} {'p90':>8}   ms, {options.runs} runs")
    for stage, values in rows.items():
        deciles = statistics.quantiles(values, n=10)
        print(f"{stage:<30} {statistics.median(values):8.1f} {deciles[0]:8.1f} {deciles[-1]:8.1f}")


if __name__ == "__main__":
    main()
