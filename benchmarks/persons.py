"""The detector of persons: what it finds in captioned images, and its time beside the image encoder's.

    python benchmarks/persons.py dataset.json IMAGES [MODEL]

Of the split val: in how many images of which two captions or more name a person it finds one, in how many of
which none does; and how often people name a person where its probability is so high. The times are
those of the processor, in turns on one core.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from ddcap import Captioner
from ddcap.data.images import load_image
from ddcap.data.records import load_records
from ddcap.evaluation.hallucination import names_person, thing_words
from ddcap.evaluation.tokenization import tokenize

ROUNDS = 30


def main() -> None:
    """Print both tables."""
    json_path, images, *model = sys.argv[1:]
    captioner = Captioner.from_pretrained(*model, runtime="onnx")
    own = captioner.model.for_bulk()
    records = load_records(json_path, images, "val")
    tokenized, _ = tokenize({one.image_id: one.captions for one in records}, "ptb-python")
    words = thing_words()
    named = np.array(
        [[names_person(words.mentions(text)) for text in tokenized[one.image_id]] for one in records]
    )
    seen = [own.encode(own.preprocessing(load_image(one.path))[None]).persons for one in records]
    chance, count = (np.array([getattr(one, name)[0] for one in seen]) for name in ("probability", "count"))
    several, none = named.sum(axis=1) >= 2, ~named.any(axis=1)
    for flags, what in ((several, "two captions or more name one"), (none, "none does")):
        print(f"found in {(count[flags] > 0).sum()} of {flags.sum()} images of which {what}")
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 1.01)):
        there = (chance >= low) & (chance < high)
        if there.any():
            means = f"mean {chance[there].mean():.2f}, named in {named[there].mean():.2f} of the captions"
            print(f"probability from {low}: {there.sum()} images, {means}")
    pixels = own.preprocessing(load_image(records[0].path))[None]
    (summary,) = own.graph("encoder").run(["summary"], {"pixels": pixels})
    calls = {
        "encoder": lambda: own.graph("encoder").run(None, {"pixels": pixels}),
        "detector": lambda: own.detector(pixels, summary),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(1000 * (time.process_time() - start))
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.1f} ms, least {min(values):.1f}")


if __name__ == "__main__":
    main()
