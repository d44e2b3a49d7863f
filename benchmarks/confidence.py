"""Measure how well a model's confidence holds on captions that it was not fitted on.

    python benchmarks/confidence.py --data dataset_flickr8k.json --images images --unknown FOLDER

Calibration error, reliability, and quality against coverage on a split with human captions; and whether known
images (that split's and the examples) are told from unknown ones (`unknown_images.py FOLDER`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ddcap import Captioner
from ddcap.data.images import find_images
from ddcap.data.records import load_records
from ddcap.decoding.confidence import Confidence, word_inputs
from ddcap.evaluation.calibration import (
    JudgedCaptions,
    area_under_curve,
    calibration_error,
    features_of,
    judge_captions,
    mean_at_coverage,
)
from ddcap.machine import describe_machine

EXAMPLES = Path(__file__).parents[1] / "examples"


def bootstrap(statistic, count: int, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of a statistic of row numbers drawn with replacement."""
    generator = np.random.default_rng(0)
    values = [statistic(generator.integers(0, count, count)) for _ in range(draws)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print the figures, and draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--unknown", type=Path, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    print(describe_machine())
    captioner = Captioner.from_pretrained(options.model)
    confidence = captioner.confidence
    assert confidence is not None, "calibrate the model first"
    judged = judge_captions(captioner, load_records(options.data, options.images, options.split))
    known = np.concatenate([confidence.known(one) for one in judged.features])
    captions = [
        confidence.judge(caption, features, 0, float(chance), captioner.model.vocabulary)
        for caption, features, chance in zip(judged.captions, judged.features, known, strict=True)
    ]
    count = len(captions)
    print(f"{count} captions, mean CIDEr {judged.cider.mean():.1f}")
    curves = {}
    for name, truth in (("sure", judged.accepted), ("faithful", judged.faithful)):
        chances = np.array([getattr(caption, name) for caption in captions])
        curves[name] = (chances, truth)
        error, area = calibration_error(chances, truth), area_under_curve(chances[truth], chances[~truth])
        low, high = bootstrap(lambda rows, c=chances, t=truth: calibration_error(c[rows], t[rows]), count)
        print(
            f"{name}: true of {truth.mean():.1%}, mean {chances.mean():.1%}; calibration error {error:.3f} "
            f"[{low:.3f}, {high:.3f}]; AUC {area:.3f}"
        )
        for part in np.array_split(np.argsort(chances, kind="stable"), 10):
            print(f"    said {chances[part].mean():.2f}, was {truth[part].mean():.2f} ({len(part)})")
    sure = curves["sure"][0]
    print("coverage: mean CIDEr, of all's")
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        mean = mean_at_coverage(judged.cider, sure, share)
        low, high = bootstrap(
            lambda rows, share=share: (
                mean_at_coverage(judged.cider[rows], sure[rows], share) / judged.cider[rows].mean()
            ),
            count,
        )
        print(f"    {share:.0%}: {mean:.1f}, {mean / judged.cider.mean():.2f} [{low:.2f}, {high:.2f}]")
    print_words(captioner, confidence, judged)
    paths = [Path(path) for path in find_images([options.unknown])]
    strange = np.concatenate([confidence.known(one) for one in features_of(captioner, paths)])
    examples = [Path(path) for path in find_images([EXAMPLES])]
    own = np.concatenate([confidence.known(one) for one in features_of(captioner, examples)])
    both = np.concatenate([known, own])
    low, high = bootstrap(
        lambda rows: area_under_curve(both[rows % len(both)], strange[rows % len(strange)]), 5000, 200
    )
    print(
        f"known from unknown: AUC {area_under_curve(both, strange):.3f} [{low:.3f}, {high:.3f}] "
        f"({len(both)} known, {len(strange)} unknown); of the examples {area_under_curve(own, strange):.3f}"
    )
    print(
        f"    called unknown: {(strange < 0.5).mean():.1%} of the unknown, {(known < 0.5).mean():.1%} of the "
        f"split, {(own < 0.5).sum()} of {len(own)} examples"
    )
    kinds = np.array([path.name.rsplit("_", 1)[0] for path in paths])
    for kind in dict.fromkeys(kinds.tolist()):
        print(f"    {kind}: {(strange[kinds == kind] < 0.5).mean():.0%} of {(kinds == kind).sum()}")
    if options.plot is not None:
        draw(options.plot, curves, judged.cider, known, strange)


def print_words(captioner: Captioner, confidence: Confidence, judged: JudgedCaptions) -> None:
    """Print how well doubted words are told."""
    chances, truth = [], []
    vocabulary = captioner.model.vocabulary
    for record, features, caption in zip(judged.records, judged.features, judged.captions, strict=True):
        named = {concept for text in record.captions for concept in vocabulary.find(text)}
        found = word_inputs(caption, features, 0, vocabulary)
        if found:
            chances += confidence.parts["word"].probability(np.array([*found.values()])).tolist()
            truth += [vocabulary.number(word) in named for word in found]
    values, right = np.array(chances), np.array(truth)
    print(
        f"words: {len(right)}, {right.mean():.1%} are named by people; calibration error "
        f"{calibration_error(values, right):.3f}, AUC {area_under_curve(values[right], values[~right]):.3f}"
    )


def draw(path: Path, curves: dict, cider: np.ndarray, known: np.ndarray, strange: np.ndarray) -> None:
    """Reliability, quality against coverage, and how known the images are."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, (chances, truth) in curves.items():
        parts = np.array_split(np.argsort(chances, kind="stable"), 10)
        left.plot([chances[p].mean() for p in parts], [truth[p].mean() for p in parts], "o-", label=name)
    left.set(
        xlabel="probability said", ylabel="share that was", title="reliability", xlim=(0, 1), ylim=(0, 1)
    )
    left.legend(frameon=False)
    sure = curves["sure"][0]
    shares = np.linspace(0.05, 1, 20)
    middle.plot(100 * shares, [mean_at_coverage(cider, sure, share) for share in shares], "o-", markersize=3)
    middle.axhline(cider.mean(), color="0.7", linewidth=1)
    middle.set(
        xlabel="captions kept, the surest first, %", ylabel="mean CIDEr", title="quality against coverage"
    )
    bins = np.linspace(0, 1, 21)
    for values, name in ((known, "photographs"), (strange, "other images")):
        right.hist(values, bins, weights=np.full(len(values), 100 / len(values)), alpha=0.6, label=name)
    right.set(xlabel="known", ylabel="% of the images", title="known from unknown")
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
