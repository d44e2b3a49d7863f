import pytest
import torch
import torch.nn.functional as F

from ddcap.model.layers import attend, join_heads, split_heads


@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_gradient_equal_torchs(masked):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 2, size, 8, generator=generator) for size in (5, 7, 7)]
    attn_mask = torch.rand(3, 1, 5, 7, generator=generator) > 0.4 if masked else None
    if masked:
        attn_mask[..., 0] = True
    results = []
    for attention in (attend, F.scaled_dot_product_attention):
        ours = [part.clone().requires_grad_() for part in parts]
        output = attention(*ours, attn_mask)
        output.square().sum().backward()
        results.append([output, *(part.grad for part in ours)])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


@torch.no_grad()
def test_without_gradient_equal_rows_have_equal_results():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, size, 64) for size in (11, 81, 81))
    many = attend(*(part.expand(7, -1, -1, -1).contiguous() for part in (query, key, value)))
    assert all(torch.equal(row, many[0]) for row in many)


def test_dropout_leaves_the_expectation():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 200, 4)
    value = value.abs()
    plain = attend(query, key, value)
    dropped = torch.stack([attend(query, key, value, dropout=0.3) for _ in range(200)])
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(dim=0), plain, rtol=0.1, atol=0.02)


def test_splitting_into_heads_and_joining_them():
    hidden = torch.arange(24.0).view(1, 3, 8)
    heads = split_heads(hidden, 4)
    assert heads.shape == (1, 4, 3, 2)
    assert heads[0, 1, 2].tolist() == hidden[0, 2, 2:4].tolist()
    assert torch.equal(join_heads(heads), hidden)
