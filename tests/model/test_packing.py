import dataclasses

import pytest
import torch
from whole_pass import diffusion_pass

from ddcap.model.features import ImageFeatures
from ddcap.model.loading import load_model
from ddcap.model.packing import ChosenPacking, Packing

PADDING = torch.tensor([[False, False, True, True], [False, True, True, True], [False] * 4])


def test_packed_and_unpacked_again_is_the_same_with_zeros_in_the_padding():
    values = torch.randn(3, 4, 5)
    packing = Packing(PADDING)
    packed = packing.pack(values)
    assert packed.shape == (7, 5)
    assert torch.equal(packing.unpack(packed), values.masked_fill(PADDING.unsqueeze(2), 0.0))
    per_caption = torch.randn(3, 5)
    assert torch.equal(packing.spread(per_caption), per_caption[[0, 0, 1, 2, 2, 2, 2]])


def test_gradients_are_those_of_indexing():
    packing = Packing(PADDING)
    torch.manual_seed(0)
    values = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    captions = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for function, argument in ((packing.pack, values), (packing.unpack, packed), (packing.spread, captions)):
        assert torch.autograd.gradcheck(function, (argument,))


@pytest.mark.parametrize("change", ["none", "a longer neighbour"])
def test_training_computes_what_evaluation_does(tiny_model_folder, change):
    """Without dropout, predictions and gradients are the same with and without the padding."""
    model = load_model(tiny_model_folder)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    features = ImageFeatures(
        torch.randn(2, model.encoder.memory_positions, model.encoder.memory_width),
        torch.randn(2, model.encoder.summary_width),
    )
    lengths = torch.tensor([5, 3, 9 if change == "none" else 12, 1])
    tokens = torch.randint(model.config.vocabulary_size + 1, (4, int(lengths.max())))
    positions = (torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)).flatten().nonzero().squeeze(1)
    results = []
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        output = diffusion_pass(
            model, tokens, torch.tensor([3, 9, 0, 19]), lengths, features, positions=positions
        )
        output.logits.square().mean().backward()
        results.append([output.logits, *(p.grad for p in model.denoiser.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_chosen_positions_come_back_to_their_places():
    values, rows = torch.randn(3, 4, 5), torch.tensor([1, 4, 6, 11])
    packing = ChosenPacking(rows, 3, 4)
    packed = packing.pack(values)
    assert torch.equal(packed, values.flatten(0, 1)[rows])
    assert torch.equal(packing.unpack(packed).flatten(0, 1)[rows], packed)
    assert torch.equal(packing.spread(torch.arange(3)), rows // 4)
    assert packing.numbers_of(ChosenPacking(torch.tensor([4, 11]), 3, 4)).tolist() == [1, 3]


@pytest.mark.parametrize("concentrated", [True, False])
def test_the_states_of_chosen_positions_are_those_of_a_whole_pass(tiny_model_folder, concentrated):
    """MASK tokens to which nobody attends are left out; without the concentrated mask that is an error."""
    model = load_model(tiny_model_folder).eval()
    settings = dataclasses.replace(model.config.model, concentrated_attention=concentrated)
    model.config = dataclasses.replace(model.config, model=settings)
    torch.manual_seed(0)
    features = ImageFeatures(
        torch.randn(2, model.encoder.memory_positions, model.encoder.memory_width),
        torch.randn(2, model.encoder.summary_width),
    )
    lengths, timestep = torch.tensor([5, 3, 9, 1]), torch.tensor([3, 9, 0, 19])
    tokens = torch.randint(model.config.vocabulary_size, (4, 9))
    is_mask = torch.rand(4, 9) < 0.6
    tokens[is_mask] = model.mask_id
    is_real = torch.arange(9) < lengths.unsqueeze(1)
    is_asked = is_mask & is_real & (torch.rand(4, 9) < 0.5)
    rows = ((is_real & ~is_mask) | is_asked).flatten().nonzero()[:, 0]
    asked = is_asked.flatten().nonzero()[:, 0]
    assert 0 < len(asked) < len(rows) < int(is_real.sum())
    with torch.no_grad():
        keys_values = model.keys_values(features)
        whole = model(tokens, timestep, lengths, keys_values).flatten(0, 1)[asked]
        chosen = model(
            tokens,
            timestep,
            lengths,
            keys_values,
            packing=ChosenPacking(rows, 4, 9),
            asked=ChosenPacking(asked, 4, 9),
        )
    assert torch.allclose(whole, chosen, atol=1e-5) == concentrated
