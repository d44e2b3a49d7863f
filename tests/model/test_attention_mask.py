import pytest
import torch

from ddcap.model.attention_mask import self_attn_mask


@pytest.mark.parametrize("concentrated", [True, False])
def test_mask_equals_a_double_loop(concentrated):
    generator = torch.Generator().manual_seed(0)
    is_mask = torch.rand(6, 9, generator=generator) < 0.5
    lengths = torch.tensor([1, 3, 5, 7, 8, 9])
    is_padding = torch.arange(9) >= lengths.unsqueeze(1)
    found = self_attn_mask(is_mask, is_padding, concentrated=concentrated)
    assert found.shape == (6, 9, 9)
    for b in range(6):
        for i in range(9):
            for j in range(9):
                hidden = is_padding[b, j] or (concentrated and is_mask[b, j])
                assert found[b, i, j] == (i == j or not hidden)


def test_words_see_words_and_each_mask_sees_words_and_itself():
    is_mask = torch.tensor([[False, True, False, True]])
    allowed = self_attn_mask(is_mask, torch.zeros(1, 4, dtype=torch.bool), concentrated=True)
    assert allowed[0].int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


def test_without_concentration_all_real_positions_are_visible():
    is_padding = torch.tensor([[False, False, True]])
    allowed = self_attn_mask(torch.ones(1, 3, dtype=torch.bool), is_padding, concentrated=False)
    assert allowed[0].int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
