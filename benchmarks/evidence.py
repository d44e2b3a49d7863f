"""Measure whether scores tell true captions from others, and find image and caption in each other.

    python benchmarks/evidence.py --data dataset_flickr8k.json --images images --retrieval 1000

- Pairs: each image with its captions, and with those of another image. AUC: how often a true pair has the
  better fit; the interval is a bootstrap over images.
- Retrieval: the first caption of each of so many images against all images, and back. Evidence looks at
  those that the tagger finds likeliest. R@k: how often the right one is among the k best.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from confidence import bootstrap

from ddcap import Captioner
from ddcap.data.records import load_records
from ddcap.decoding.scoring import ManyCaptions, caption_evidence
from ddcap.evaluation.calibration import area_under_curve, features_of
from ddcap.machine import ahead, describe_machine
from ddcap.model.features import ImageFeatures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="default")
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--retrieval", type=int, default=0, help="images to find in each other")
    parser.add_argument("--short", type=int, default=40, help="likely ones that evidence looks at")
    options = parser.parse_args()
    print(describe_machine())
    captioner = Captioner.from_pretrained(options.model)
    model = captioner.model.for_bulk() if captioner.runtime == "onnx" else captioner.model
    longest = model.config.model.max_length
    records = load_records(options.data, options.images, options.split)[: options.limit]
    captions = [[text for text in record.captions if fits(captioner, text, longest)] for record in records]
    kept = [number for number, texts in enumerate(captions) if len(texts) == 5]
    records, captions = [records[number] for number in kept], [captions[number] for number in kept]
    print(f"{len(records)} images whose five captions all have at most {longest} tokens")
    others = np.roll(np.arange(len(records)), 1)  # nobody stays; neighbours in a split are strangers
    features = features_of(captioner, [record.path for record in records])

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
        low, high = bootstrap(
            lambda rows, a=true, b=other: area_under_curve(a[rows].ravel(), b[rows].ravel()), len(true)
        )
        print(
            f"AUC by {name}: {area_under_curve(true.ravel(), other.ravel()):.4f} [{low:.4f}, {high:.4f}]",
            flush=True,
        )
    if options.retrieval:
        retrieve(model, features[: options.retrieval], captions, captioner, options.short)


def fits(captioner: Captioner, text: str, longest: int) -> bool:
    """Tell whether a caption has words, and not more tokens than the model knows."""
    return 1 < len(captioner.tokenizer.encode(text)) <= longest


def retrieve(
    model: Any, features: list[ImageFeatures], captions: list[list[str]], captioner: Captioner, short: int
) -> None:
    """Print R@1, R@5 and R@10 both ways, of evidence among the `short` that the tagger finds likeliest."""
    first = [texts[0] for texts in captions[: len(features)]]
    prepared = ManyCaptions(model, first, captioner.tokenizer)
    tags = tag_scores(features, first, captioner)  # (images, captions)
    asked = np.zeros(tags.shape, dtype=bool)
    for scores, into in ((tags, asked), (tags.T, asked.T)):
        best = np.argsort(-scores, axis=1)[:, :short]
        np.put_along_axis(into, best, True, axis=1)
    prepared.gains(features[0])  # the image-free branch of every caption, once

    def compare(number: int) -> np.ndarray:
        return prepared.gains(features[number], np.flatnonzero(asked[number]))

    gains = np.full(tags.shape, -np.inf)
    for number, found in ahead(compare, range(len(features))):
        gains[number, asked[number]] = found
    for way, which in (("image to caption", np.s_[:]), ("caption to image", None)):
        by_tag, by_gain, among = (array if which is not None else array.T for array in (tags, gains, asked))
        print(f"{way}, {len(features)} of each: {shares(by_tag)} by the tagger alone")
        print(
            f"    by evidence among its {short} best: {shares(by_gain)}; there: {np.diag(among).mean():.1%}"
        )


def shares(scores: np.ndarray) -> str:
    """R@1, R@5 and R@10 of (queries, answers), of which the right ones are on the diagonal."""
    rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
    rank[np.isneginf(np.diag(scores))] = len(scores)  # not looked at
    return ", ".join(f"R@{k} {(rank < k).mean():.1%}" for k in (1, 5, 10))


def tag_scores(features: list[ImageFeatures], captions: list[str], captioner: Captioner) -> np.ndarray:
    """(images, captions) how much likelier an image makes the concepts of a caption."""
    vocabulary = captioner.model.vocabulary
    seen = np.full((len(features), len(vocabulary)), 1e-3)
    for row, one in zip(seen, features, strict=True):
        for concept, share in zip(one.concepts.ids[0], one.concepts.confidences[0], strict=True):
            if concept >= 0:
                row[concept] += share
    gain = np.log(seen / seen.mean(axis=0))
    named = np.zeros((len(captions), len(vocabulary)))
    for row, text in zip(named, captions, strict=True):
        row[vocabulary.find(text)] = 1
    return gain @ named.T


if __name__ == "__main__":
    main()
