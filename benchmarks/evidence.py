"""Whether evidence tells true captions from others, and finds picture and caption in each other.

    python benchmarks/evidence.py --data dataset_flickr8k.json --images images --retrieval 1000

- Pairs: each picture with its captions, and with those of another picture. AUC: how often a true pair has the
  better fit; the interval is a bootstrap over pictures.
- Retrieval: the first caption of each of so many pictures against all of the pictures, and back, by evidence
  alone. R@k: how often the right one is among the k best.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ddcap import Captioner
from ddcap.data.records import load_records
from ddcap.decoding.evidence import ManyCaptions, caption_evidence
from ddcap.machine import ahead, describe_machine


def auc(true: np.ndarray, other: np.ndarray) -> float:
    """How often one of `true` is over one of `other`; equal ones count half."""
    order = np.sort(other)
    below, up_to = np.searchsorted(order, true, "left"), np.searchsorted(order, true, "right")
    return float((below + up_to).sum() / 2 / len(true) / len(other))


def interval(true: np.ndarray, other: np.ndarray, draws: int = 500) -> tuple[float, float]:
    """95 % of a bootstrap over pictures (I, captions)."""
    generator = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        chosen = generator.integers(0, len(true), len(true))
        values.append(auc(true[chosen].ravel(), other[chosen].ravel()))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="default")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    parser.add_argument("--retrieval", type=int, default=0, help="pictures to find in each other")
    options = parser.parse_args()
    print(describe_machine())
    captioner = Captioner.from_pretrained(options.model)
    model = captioner.model.for_bulk() if captioner.runtime == "onnx" else captioner.model
    longest = model.config.model.max_length
    records = load_records(options.data, options.images, options.split)[: options.limit]
    captions = [[text for text in record.captions if fits(captioner, text, longest)] for record in records]
    kept = [number for number, texts in enumerate(captions) if len(texts) == 5]
    records, captions = [records[number] for number in kept], [captions[number] for number in kept]
    print(f"{len(records)} pictures whose five captions all have at most {longest} tokens")
    others = np.roll(np.arange(len(records)), 1)  # nobody stays; neighbours in a split are strangers
    features = [found for _, found in ahead(lambda one: captioner.features([one.path]), records)]

    def pairs(number: int) -> list[tuple[float, ...]]:
        texts = [*captions[number], *captions[others[number]]]
        (found,) = caption_evidence(model, features[number], [texts], captioner.tokenizer)
        content = [np.mean([one.gain for one in each.words]) for each in found]
        return [
            (each.fit, each.gain, each.log_likelihood / each.tokens, float(word))
            for each, word in zip(found, content, strict=True)
        ]

    values = np.array([found for _, found in ahead(pairs, range(len(records)))])  # (I, 10, kinds)
    for kind, name in enumerate(("fit (gain a token)", "gain", "log-likelihood a token", "gain a word")):
        true, other = values[:, :5, kind], values[:, 5:, kind]
        low, high = interval(true, other)
        print(f"AUC by {name}: {auc(true.ravel(), other.ravel()):.4f} [{low:.4f}, {high:.4f}]", flush=True)
    if options.retrieval:
        retrieve(model, features[: options.retrieval], captions, captioner)


def fits(captioner: Captioner, text: str, longest: int) -> bool:
    """Whether a caption has words, and not more tokens than the model knows."""
    return 1 < len(captioner.tokenizer.encode(text)) <= longest


def retrieve(model: object, features: list, captions: list[list[str]], captioner: Captioner) -> None:
    """Print R@1, R@5 and R@10 both ways."""
    first = [texts[0] for texts in captions[: len(features)]]
    prepared = ManyCaptions(model, first, captioner.tokenizer)
    prepared.gains(features[0])
    rows = [found for _, found in ahead(prepared.gains, features)]
    for name, gains in (("gain", np.array(rows)), ("gain a token", np.array(rows) / prepared.tokens)):
        for way, scores in (("picture to caption", gains), ("caption to picture", gains.T)):
            own = np.diag(scores)[:, None]
            rank = (scores > own).sum(axis=1)
            shares = ", ".join(f"R@{k} {100 * (rank < k).mean():.1f} %" for k in (1, 5, 10))
            print(f"{way} by {name}, {len(rank)} of each: {shares}; median rank {np.median(rank) + 1:.0f}")


if __name__ == "__main__":
    main()
