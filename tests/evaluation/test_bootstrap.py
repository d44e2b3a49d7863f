import numpy as np
import pytest

from ddcap.evaluation.metrics import SAMPLES, bootstrap_interval


def test_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(1).normal(50, 40, size=1000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.3)
    assert high == pytest.approx(values.mean() + half, abs=0.3)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.exponential(10, size=100))
        hits += low <= 10 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_same_seed_same_interval_and_no_spread_no_width():
    assert bootstrap_interval([1.0, 2.0, 5.0], seed=3) == bootstrap_interval([1.0, 2.0, 5.0], seed=3)
    assert bootstrap_interval([4.0] * 10) == (4.0, 4.0)


@pytest.mark.parametrize("asked", [{}, {"level": 0.5}, {"level": 0.9, "seed": 3}])
def test_interval_is_the_percentiles_of_resampled_means(asked):
    values = [1.0, 2.0, 5.0, 11.0, 3.5]
    drawn = np.random.default_rng(asked.get("seed", 0)).integers(5, size=(SAMPLES, 5)).tolist()
    means = sorted(sum(values[number] for number in numbers) / 5 for numbers in drawn)

    def percentile(share):
        below, part = divmod(share * (SAMPLES - 1), 1)
        return means[int(below)] + part * (means[int(below) + 1] - means[int(below)])

    outside = (1 - asked.get("level", 0.95)) / 2
    assert bootstrap_interval(values, **asked) == pytest.approx(
        (percentile(outside), percentile(1 - outside))
    )
