"""Measure how often infilling finds the width of a blank: with and without a second look at the widths.

    python benchmarks/infilling_width.py --data dataset_flickr8k.json --images images [--limit 400]

One to three words in a row of a person's caption become a blank of unknown width. Counted: whether the filled
blank has as many words, and the same ones; CIDEr of the whole caption against the image's other captions.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddcap import Captioner
from ddcap.data.records import load_records
from ddcap.decoding.caption import build_captions
from ddcap.decoding.infilling import infill, parse_template
from ddcap.evaluation.metrics import DocumentFrequencies, score_cider
from ddcap.evaluation.tokenization import tokenize
from ddcap.machine import ahead, describe_machine


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=400)
    options = parser.parse_args()
    print(describe_machine())
    captioner = Captioner.from_pretrained()
    model, tokenizer = captioner.model.for_bulk(), captioner.tokenizer
    settings, draw = replace(captioner.settings(), exact_length=False), random.Random(0)
    jobs = []
    for record in load_records(options.data, options.images, options.split)[: options.limit]:
        words = tokenizer.decode(tokenizer.encode(record.captions[0])).split()
        size = draw.choice([1, 2, 3])
        if len(words) < 6 or len(tokenizer.encode(record.captions[0])) > 18:
            continue
        jobs.append((record, words, draw.randrange(1, len(words) - size), size))

    def fill(job: tuple[Any, list[str], int, int]) -> list[str]:
        record, words, place, size = job
        features = model.encode(captioner.pixels(record.path)[None])
        template = parse_template(" ".join([*words[:place], "___", *words[place + size :]]), tokenizer)
        texts = []
        for own in (None, tokenizer):
            found = infill(model, features, template, settings, tokenizer.end_id, tokenizer=own)
            texts.append(build_captions(found.result, [found.row], tokenizer)[0].text)
        return texts

    filled = [found for _, found in ahead(fill, jobs)]
    together, _ = tokenize(
        {job[0].image_id: [*job[0].captions[1:], *texts] for job, texts in zip(jobs, filled, strict=True)}
    )
    truth = {image: texts[:-2] for image, texts in together.items()}
    frequencies, scores = DocumentFrequencies.count(truth, "these images"), []
    for way, name in enumerate(("mean confidence of the filled tokens", "pseudo-likelihood of the caption")):
        guess = {image: [texts[way - 2]] for image, texts in together.items()}
        scores.append(100 * np.array(score_cider(truth, guess, frequencies).per_image))
        pairs = [(texts[way].split(), job[1]) for job, texts in zip(jobs, filled, strict=True)]
        width = np.mean([len(text) == len(words) for text, words in pairs])
        same = np.mean([text == words for text, words in pairs])
        print(f"{name}: width {width:.1%}, the same words {same:.1%}, CIDEr {scores[-1].mean():.1f}")
    change = scores[1] - scores[0]
    spread = 1.96 * change.std() / len(change) ** 0.5
    print(f"CIDEr {change.mean():+.1f} ± {spread:.1f} ({len(change)} captions, paired)")


if __name__ == "__main__":
    main()
