"""CIDEr of a model under several decoding settings, on val: how the default's settings were chosen.

    python benchmarks/decoding_sweep.py MODEL dataset_flickr8k.json images [--limit 1000]

Features are computed once; every row decodes all pictures anew.
"""

import argparse
import itertools
import time

import numpy as np

from ddcap.captioner import Captioner
from ddcap.data.records import load_karpathy
from ddcap.decoding.generate import generate
from ddcap.evaluation.metrics import score_captions
from ddcap.machine import describe_machine

ROWS: list[dict[str, object]] = [
    *({"guidance": guidance} for guidance in (1.0, 1.35, 1.5)),
    {"length_rule": "expected"},
    *({"length": length} for length in (10, 11, 12)),
    *({"steps": steps} for steps in (4, 8)),
    {"method": "ancestral"},
]
IMAGES_AT_ONCE = 50


def main() -> None:
    """Print one row for every setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("images")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    captioner = Captioner.from_pretrained(options.model, runtime="torch")
    records = load_karpathy(options.data, options.images, options.split)[: options.limit]
    references = {record.image_id: record.captions for record in records}
    paths = [record.path for record in records]
    starts = range(0, len(paths), IMAGES_AT_ONCE)
    parts = [captioner.features(paths[start : start + IMAGES_AT_ONCE]) for start in starts]
    print(f"{options.model}, {len(records)} pictures of {options.split}; {describe_machine()}")
    print(f"{'changed setting':<28} {'CIDEr':>6} {'BLEU-4':>7} {'words':>6} {'seconds':>8}")
    for row in itertools.chain([{}], ROWS):
        settings = captioner.settings(**row)
        generator = np.random.default_rng(0)
        start = time.perf_counter()
        tokens = [
            ids
            for part in parts
            for ids in generate(
                captioner.model, part, settings, captioner.tokenizer.end_id, generator=generator
            ).tokens
        ]
        seconds = time.perf_counter() - start
        texts = [captioner.tokenizer.decode(ids.tolist()) for ids in tokens]
        scores = score_captions(dict(zip(references, texts, strict=True)), references).metrics
        words = sum(len(text.split()) for text in texts) / len(texts)
        name = ", ".join(f"{key}={value}" for key, value in row.items()) or "none"
        print(
            f"{name:<28} {scores['CIDEr']:6.1f} {scores['BLEU-4']:7.1f} {words:6.1f} {seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
