import numpy as np
import pytest

from ddcap.evaluation.metrics import bootstrap_interval
from experiments.difference import compare_rows, holm


def rows_without_a_difference(generator, seeds, images, of_images, of_seeds, of_both, shared=False):
    """Two rows' scores, (S, I) each, alike but for images, seeds and what is particular to both."""
    spread = 20 * generator.standard_normal(images)
    effects = [of_seeds * generator.standard_normal((seeds, 1)) for _ in range(2)]
    return [
        spread
        + of_images * generator.standard_normal(images)
        + effects[0 if shared else row]
        + of_both * generator.standard_normal((seeds, images))
        for row in range(2)
    ]


@pytest.mark.parametrize(
    ("of_images", "of_seeds", "of_both"),
    [(10, 0.5, 20), (5, 3, 10), (0, 0.5, 20)],  # images, seeds, their interaction matter most
)
def test_an_interval_of_three_seeds_holds_the_truth_about_95_times_of_100(of_images, of_seeds, of_both):
    generator = np.random.default_rng(5)
    times, held, under = 300, 0, 0
    for _ in range(times):
        rows = rows_without_a_difference(generator, 3, 150, of_images, of_seeds, of_both)
        found = compare_rows(*(dict(enumerate(row)) for row in rows))
        low, high = found["interval_95_seeds"]
        held += low <= 0 <= high
        under += found["p"] < 0.05
    assert 0.92 <= held / times <= 0.985
    assert under == pytest.approx(times - held, abs=1)  # p and interval say the same


def test_resampling_three_seeds_alone_would_be_too_narrow():
    """What `compare_rows` does not do: the percentile bootstrap at both levels."""
    generator = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        rows = rows_without_a_difference(generator, 3, 100, 0, 3, 1)
        means = [row.mean(axis=1) for row in rows]  # images hardly matter here
        drawn = [row[generator.integers(3, size=(1000, 3))].mean(axis=1) for row in means]
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        held += low <= 0 <= high
    assert held / 200 < 0.85


def test_rows_of_the_same_trainings_are_compared_training_by_training():
    rows = rows_without_a_difference(np.random.default_rng(7), 3, 200, 5, 10, 5, shared=True)
    better, worse = (dict(enumerate(row)) for row in (rows[0] + 5, rows[1]))
    apart, together = (compare_rows(better, worse, same_trainings=same) for same in (False, True))
    assert together["p"] < 0.05 < apart["p"]
    assert together["interval_95_seeds"][0] > 0 > apart["interval_95_seeds"][0]
    assert together["difference"] == apart["difference"]


def test_a_comparison_has_both_intervals_and_all_seeds():
    generator = np.random.default_rng(8)
    better = {seed: 50 + 10 * generator.standard_normal(80) for seed in (0, 1, 2)}
    worse = {seed: 40 + 10 * generator.standard_normal(80) for seed in (1, 2)}
    found = compare_rows(better, worse)
    paired = np.mean(list(better.values()), axis=0) - np.mean(list(worse.values()), axis=0)
    assert found["difference"] == pytest.approx(paired.mean())
    assert found["interval_95"] == pytest.approx(bootstrap_interval(paired))
    assert found["per_seed"] == {
        str(seed): pytest.approx(better[seed].mean() - worse[seed].mean()) for seed in (1, 2)
    }
    low, high = found["interval_95_seeds"]
    assert low < found["interval_95"][0] < found["difference"] < found["interval_95"][1] < high
    other_way = compare_rows(worse, better)
    assert other_way["p"] == pytest.approx(found["p"], rel=0.5, abs=1e-3)
    assert compare_rows(better, worse) == found  # nothing is left to chance


def test_one_seed_has_no_p_however_sure_the_images_are():
    found = compare_rows({0: [50.0, 51.0, 52.0]}, {0: [1.0, 2.0, 3.0], 1: [1.0, 2.0, 3.1]})
    assert found["interval_95_seeds"] is None and found["p"] is None
    assert found["difference"] == pytest.approx(48.98, abs=0.01)


def test_seeds_that_do_not_differ_leave_the_images_alone():
    scores = 10 * np.random.default_rng(9).standard_normal((2, 300))
    found = compare_rows({0: scores[0], 1: scores[0]}, {0: scores[1], 1: scores[1]})
    assert found["interval_95_seeds"] == pytest.approx(found["interval_95"], abs=0.2)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
