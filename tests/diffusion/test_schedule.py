import pytest
import torch

from ddcap.diffusion import between, linear_schedule
from ddcap.errors import RecipeError
from ddcap.settings import DiffusionSettings

V, T = 5, 8


def test_one_step_probabilities_sum_to_one(schedule):
    total = schedule.keep + V * schedule.replace + schedule.mask
    torch.testing.assert_close(total, torch.ones(T, dtype=torch.float64), rtol=0, atol=1e-12)
    for table in (schedule.keep, schedule.replace, schedule.mask):
        assert (table >= 0).all()


def test_cumulative_tables_are_one_step_matrices_multiplied_up(schedule, transition_matrix):
    for t in range(-1, T):
        matrix = transition_matrix(schedule, -1, t)
        expected = torch.full((V, V), schedule.cumulative_replace[t].item(), dtype=torch.float64)
        expected += schedule.cumulative_keep[t] * torch.eye(V, dtype=torch.float64)
        torch.testing.assert_close(matrix[:V, :V], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(matrix[:V, V], schedule.cumulative_mask[t].expand(V), rtol=0, atol=1e-12)


def test_between_is_the_product_of_the_steps_between(schedule, transition_matrix):
    for later in range(T):
        for earlier in range(-1, later):
            keep, replace, mask = between(schedule, torch.tensor([earlier]), torch.tensor([later]))
            matrix = transition_matrix(schedule, earlier, later)
            torch.testing.assert_close(matrix[0, 0].view(1), keep + replace, rtol=0, atol=1e-12)
            torch.testing.assert_close(matrix[0, 1].view(1), replace, rtol=0, atol=1e-12)
            torch.testing.assert_close(matrix[0, V].view(1), mask, rtol=0, atol=1e-12)


def test_between_neighbours_is_one_step(schedule):
    t = torch.arange(T)
    for found, expected in zip(
        between(schedule, t - 1, t), (schedule.keep, schedule.replace, schedule.mask), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_without_replacement_mass_nothing_is_left_of_rounding(masking_schedule):
    assert (masking_schedule.replace == 0).all()
    assert (masking_schedule.cumulative_replace == 0).all()
    for later in range(T):
        earlier = torch.arange(-1, later)
        assert (between(masking_schedule, earlier, torch.full_like(earlier, later))[1] == 0).all()


def test_end_points_are_the_settings():
    settings = DiffusionSettings(steps=T, keep_start=0.95, keep_end=0.01, mask_start=0.04, mask_end=0.9)
    schedule = linear_schedule(settings, V)
    assert schedule.steps == T
    assert schedule.cumulative_keep[[0, T - 1, -1]].tolist() == [0.95, 0.01, 1.0]
    assert schedule.cumulative_mask[[0, T - 1, -1]].tolist() == [0.04, 0.9, 0.0]
    shared = schedule.cumulative_replace[[0, T - 1, -1]] * V
    torch.testing.assert_close(shared, torch.tensor([0.01, 0.09, 0.0], dtype=torch.float64))


def test_a_single_step_is_the_last_one():
    """Decoding starts from MASK alone, so with T = 1 the only step has to lead there."""
    for mask_end in (0.99999, 0.8):
        schedule = linear_schedule(DiffusionSettings(steps=1, mask_end=mask_end), V)
        assert schedule.cumulative_mask.tolist() == [mask_end, 0.0]
        assert schedule.mask.tolist() == pytest.approx([mask_end])
        assert schedule.cumulative_keep.tolist() == [0.000009, 1.0]
        assert schedule.cumulative_replace[0] * V == pytest.approx(1 - mask_end - 0.000009, abs=1e-12)


def test_cumulative_lines_are_straight(schedule):
    for table in (schedule.cumulative_keep[:T], schedule.cumulative_mask[:T]):
        differences = table.diff()
        torch.testing.assert_close(differences, differences[:1].expand(T - 1), rtol=0, atol=1e-12)


def test_replacement_shared_with_mask_as_in_the_release():
    settings = DiffusionSettings(steps=T, mask_end=0.9)
    schedule = linear_schedule(settings, V, count_mask_as_replacement=True)
    total = schedule.cumulative_keep + (V + 1) * schedule.cumulative_replace + schedule.cumulative_mask
    torch.testing.assert_close(total, torch.ones(T + 1, dtype=torch.float64))
    t = torch.arange(T)
    torch.testing.assert_close(between(schedule, t - 1, t)[1], schedule.replace, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "ends",
    [
        {"keep_start": 0.1, "keep_end": 0.2, "mask_start": 0.0, "mask_end": 0.1},  # keep rises
        {"keep_start": 0.3, "keep_end": 0.1, "mask_start": 0.6, "mask_end": 0.5},  # MASK falls
        {"keep_start": 0.4, "keep_end": 0.4, "mask_start": 0.1, "mask_end": 0.5},  # replaced words turn back
    ],
)
def test_impossible_end_points_are_refused(ends):
    with pytest.raises(RecipeError, match="negative"):
        linear_schedule(DiffusionSettings(steps=T, **ends), V)
