import torch

from ddcap.model.layers import LengthHead, TanhMLP


def test_length_head_is_two_layers_with_a_tanh_between():
    mlp = TanhMLP(3, 4, 2)
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    first, second = mlp[0], mlp[2]
    hidden = torch.tanh(inputs @ first.weight.T + first.bias)
    torch.testing.assert_close(mlp(inputs), hidden @ second.weight.T + second.bias)


def test_one_class_for_every_length():
    head = LengthHead(summary_width=6, hidden=8, max_length=20)
    summary = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    logits = head(summary)
    assert logits.shape == (3, 20)
    torch.testing.assert_close(logits[1:2], head(summary[1:2]))
    assert not torch.allclose(logits[0], logits[1])
