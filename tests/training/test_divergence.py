import pytest
import torch

from ddcap.errors import TrainingError
from ddcap.training.loop import DivergenceGuard

FINE, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def test_a_fine_step_between_bad_ones_starts_the_count_again():
    guard = DivergenceGuard()
    found = [guard.allows(step, norm, ["a"]) for step, norm in enumerate([BAD, BAD, FINE, BAD, BAD, FINE])]
    assert found == [False, False, True, False, False, True]
    assert guard.skipped == 4


def test_the_third_in_a_row_names_step_and_images():
    guard = DivergenceGuard()
    images = [f"image{number}" for number in range(20)]
    for step in (7, 8):
        guard.allows(step, torch.tensor(float("inf")), images)
    with pytest.raises(TrainingError, match=r"step 9: .*image0, .*image7, \.\.\.\).*training\.learning_rate"):
        guard.allows(9, BAD, images)
