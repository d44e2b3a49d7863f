import copy
import math

import pytest
import torch

from ddcap.model.attention_mask import self_attn_mask
from ddcap.model.blocks import MemoryKeysValues
from ddcap.model.denoiser import Denoiser
from ddcap.model.layers import TimestepEmbedding
from ddcap.settings import ModelSettings

V, T, L, P, D = 11, 8, 6, 4, 16
MASK = V
SETTINGS = ModelSettings(width=D, layers=2, heads=4, dropout=0.5, max_length=L, positions=12)


@pytest.fixture(scope="module")
def denoiser(perturbed):
    return perturbed(Denoiser, SETTINGS, V, T)


@pytest.fixture(scope="module")
def memory():
    """Of two images."""
    return torch.randn(2, P, D, generator=torch.Generator().manual_seed(5))


def hidden_states(denoiser, tokens, memory, *, lengths=None, timestep=None, concentrated=True):
    batch, longest = tokens.shape
    lengths = torch.full((batch,), longest) if lengths is None else lengths
    timestep = torch.full((batch,), 3) if timestep is None else timestep
    is_padding = torch.arange(longest) >= lengths.unsqueeze(1)
    allowed = self_attn_mask(tokens == MASK, is_padding, concentrated=concentrated)
    with torch.no_grad():
        return denoiser(tokens, timestep, denoiser.project_memory(memory), allowed)


CAPTIONS = torch.tensor([[1, MASK, 3, 4, MASK, 0], [5, 6, MASK, 2, MASK, MASK]])


def test_output_shapes(denoiser, memory):
    hidden = hidden_states(denoiser, CAPTIONS, memory)
    assert hidden.shape == (2, L, D)
    assert denoiser.logits(hidden).shape == (2, L, V)


@pytest.mark.parametrize("concentrated", [True, False])
def test_more_padding_changes_nothing(denoiser, memory, concentrated):
    lengths = torch.tensor([4, 6])
    plain = hidden_states(denoiser, CAPTIONS, memory, lengths=lengths, concentrated=concentrated)
    for filler in (0, 7, MASK):
        padded = torch.cat([CAPTIONS, torch.full((2, 5), filler)], dim=1)
        padded[0, 4:] = filler
        found = hidden_states(denoiser, padded, memory, lengths=lengths, concentrated=concentrated)
        torch.testing.assert_close(found[0, :4], plain[0, :4])
        torch.testing.assert_close(found[1, :6], plain[1, :6])


def test_a_batch_is_its_captions_one_by_one(denoiser, memory):
    together = hidden_states(denoiser, CAPTIONS, memory, timestep=torch.tensor([1, 6]))
    for row, t in enumerate((1, 6)):
        alone = hidden_states(
            denoiser, CAPTIONS[row : row + 1], memory[row : row + 1], timestep=torch.tensor([t])
        )
        torch.testing.assert_close(together[row : row + 1], alone)


def test_with_concentration_the_number_of_masks_does_not_matter(denoiser, memory):
    few = torch.tensor([[1, MASK, 3, 4]])
    many = torch.tensor([[1, MASK, 3, 4, MASK, MASK]])
    few_hidden = hidden_states(denoiser, few, memory[:1])
    torch.testing.assert_close(hidden_states(denoiser, many, memory[:1])[:, :4], few_hidden)
    dense_few = hidden_states(denoiser, few, memory[:1], concentrated=False)
    dense_many = hidden_states(denoiser, many, memory[:1], concentrated=False)[:, :4]
    assert ((dense_many - dense_few).abs().amax(dim=2) > 1e-3).all()


def test_a_word_reaches_every_other_position_but_a_mask_none(denoiser, memory):
    changed_word = CAPTIONS.clone()
    changed_word[0, 2] = 9
    before = hidden_states(denoiser, CAPTIONS, memory)
    difference = (hidden_states(denoiser, changed_word, memory) - before).abs().amax(dim=2)
    assert (difference[0] > 1e-4).all()
    assert (difference[1] == 0).all()

    changed_mask = copy.deepcopy(denoiser)
    changed_mask.mask_embedding.data.neg_()
    difference = (hidden_states(changed_mask, CAPTIONS, memory) - before).abs().amax(dim=2)
    is_mask = CAPTIONS == MASK
    assert (difference[is_mask] > 1e-4).all()
    assert (difference[~is_mask] == 0).all()


def test_captions_of_one_image_share_its_memory(denoiser, memory):
    tokens = torch.randint(V + 1, (6, L), generator=torch.Generator().manual_seed(6))
    timestep = torch.arange(6)
    shared = hidden_states(denoiser, tokens, memory, timestep=timestep)
    repeated = hidden_states(denoiser, tokens, memory.repeat_interleave(3, dim=0), timestep=timestep)
    torch.testing.assert_close(shared, repeated)
    other = hidden_states(denoiser, tokens, memory[[0, 0]], timestep=timestep)
    torch.testing.assert_close(other[:3], shared[:3])
    assert ((other[3:] - shared[3:]).abs().amax(dim=2) > 1e-3).all()


def test_keys_and_values_can_be_joined_and_expanded(denoiser, memory):
    first, second = denoiser.project_memory(memory[:1]), denoiser.project_memory(memory[1:])
    both = denoiser.project_memory(memory)
    same(first.followed_by(second), both)
    same(second.expand(3), denoiser.project_memory(memory[[1, 1, 1]]))


def same(one: MemoryKeysValues, other: MemoryKeysValues):
    assert len(one.layers) == len(other.layers) == SETTINGS.layers
    for pair, other_pair in zip(one.layers, other.layers, strict=True):
        for found, expected in zip(pair, other_pair, strict=True):
            torch.testing.assert_close(found, expected)


def test_order_of_the_image_positions_does_not_matter(denoiser, memory):
    torch.testing.assert_close(
        hidden_states(denoiser, CAPTIONS, memory.flip(1)), hidden_states(denoiser, CAPTIONS, memory)
    )


def test_position_matters(denoiser, memory):
    swapped = CAPTIONS.clone()
    swapped[:, [0, 3]] = CAPTIONS[:, [3, 0]]
    hidden, other = (hidden_states(denoiser, tokens, memory) for tokens in (CAPTIONS, swapped))
    assert not torch.allclose(other[:, 3], hidden[:, 0], atol=1e-3)
    all_mask = hidden_states(denoiser, torch.full((1, L), MASK), memory[:1])[0]
    assert (torch.pdist(all_mask) > 1e-3).all()


def test_every_caption_has_its_own_timestep(denoiser, memory):
    one = hidden_states(denoiser, CAPTIONS, memory, timestep=torch.tensor([0, 5]))
    other = hidden_states(denoiser, CAPTIONS, memory, timestep=torch.tensor([1, 5]))
    assert ((one[0] - other[0]).abs().amax(dim=1) > 1e-4).all()
    torch.testing.assert_close(one[1], other[1])


def test_an_untrained_norm_ignores_the_timestep(memory):
    fresh = Denoiser(SETTINGS, V, T).eval()
    early, late = (hidden_states(fresh, CAPTIONS, memory, timestep=torch.tensor([t, t])) for t in (0, 7))
    assert torch.equal(early, late)


def test_timestep_embedding_formula():
    embedding = TimestepEmbedding(8, T)(torch.arange(T))
    for t in range(T):
        for i in range(4):
            angle = t / T * 8000 * math.exp(-math.log(10000) * i / 3)
            assert embedding[t, i].item() == pytest.approx(math.sin(angle), abs=2e-3)
            assert embedding[t, 4 + i].item() == pytest.approx(math.cos(angle), abs=2e-3)


def test_head_is_tied_to_the_embedding(denoiser, memory):
    hidden = hidden_states(denoiser, CAPTIONS, memory)
    expected = hidden @ denoiser.token_embedding.weight.T
    torch.testing.assert_close(denoiser.logits(hidden), expected)
    torch.testing.assert_close(denoiser.logits(hidden[1, 2]), expected[1, 2])
    wide = [name for name, value in denoiser.state_dict().items() if value.shape[0] == V]
    assert wide == ["token_embedding.weight"]


def test_dropout_only_in_training(perturbed, memory):
    dropping = perturbed(Denoiser, SETTINGS, V, T).train()
    assert not torch.allclose(
        hidden_states(dropping, CAPTIONS, memory), hidden_states(dropping, CAPTIONS, memory)
    )
    dropping.eval()
    still = hidden_states(dropping, CAPTIONS, memory)
    assert torch.equal(still, hidden_states(dropping, CAPTIONS, memory))
    plain = Denoiser(
        ModelSettings(width=D, layers=2, heads=4, dropout=0.0, max_length=L, positions=12), V, T
    ).train()
    plain.load_state_dict(dropping.state_dict())
    torch.testing.assert_close(hidden_states(plain, CAPTIONS, memory), still)


def test_every_weight_is_read(denoiser, memory):
    allowed = self_attn_mask(CAPTIONS == MASK, torch.zeros(2, L, dtype=torch.bool), concentrated=True)
    hidden = denoiser(CAPTIONS, torch.tensor([2, 5]), denoiser.project_memory(memory), allowed)
    gradients = torch.autograd.grad(denoiser.logits(hidden).square().sum(), list(denoiser.parameters()))
    for (name, _), gradient in zip(denoiser.named_parameters(), gradients, strict=True):
        assert gradient.abs().sum() > 0, name
