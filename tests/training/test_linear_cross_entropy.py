import pytest
import torch
import torch.nn.functional as F

from ddcap.training import loss as module
from ddcap.training.loss import linear_cross_entropy

N, D, V = 37, 8, 50


def losses_and_gradients(compute):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    target = torch.randint(V, (N,), generator=generator)
    loss = compute(hidden, weight, target)
    (3 * loss).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("logits_at_once", [V // 2, V, 10 * V, 1000 * V])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_the_cross_entropy_of_the_logits(monkeypatch, logits_at_once, smoothing):
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", logits_at_once)
    monkeypatch.setattr(module, "_WORDS_AT_ONCE", 7)
    found = losses_and_gradients(lambda h, w, t: linear_cross_entropy(h, w, t, label_smoothing=smoothing))
    expected = losses_and_gradients(
        lambda h, w, t: F.cross_entropy(F.linear(h, w), t, label_smoothing=smoothing)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_mixed_precision_rounds_products_only():
    with torch.autocast("cpu", torch.bfloat16):
        loss, hidden, weight = losses_and_gradients(linear_cross_entropy)
    exact = losses_and_gradients(linear_cross_entropy)
    assert loss.dtype == hidden.dtype == weight.dtype == torch.float32
    assert not torch.equal(loss, exact[0])
    assert not torch.equal(hidden, hidden.bfloat16().float())  # the loss's own gradient counts in full
    for mine, theirs in zip((loss, hidden, weight), exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("smoothing", [{}, {"label_smoothing": 0.2}])
def test_without_a_gradient_the_loss_is_the_same(smoothing):
    hidden, weight, target = torch.randn(N, D), torch.randn(V, D), torch.arange(N)
    with torch.no_grad():
        plain = linear_cross_entropy(hidden, weight, target, **smoothing)
    torch.testing.assert_close(plain, F.cross_entropy(hidden @ weight.T, target, **smoothing))
    with_gradient = linear_cross_entropy(hidden, weight.requires_grad_(), target, **smoothing)
    torch.testing.assert_close(plain, with_gradient)


def test_logits_of_all_rows_never_exist(monkeypatch):
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 5 * V)
    sizes = []
    linear = F.linear
    monkeypatch.setattr(
        module.F, "linear", lambda rows, matrix: sizes.append(len(rows)) or linear(rows, matrix)
    )
    losses_and_gradients(linear_cross_entropy)
    assert sum(sizes) == N and max(sizes) == 5
