import itertools

import pytest
import torch

from ddcap.decoding.best_first import plan_steps
from ddcap.decoding.generate import start_tokens
from ddcap.decoding.guidance import build_predictor
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import load_model
from ddcap.objective.policy import draw_best_first, draw_captions
from ddcap.recipe import DecodingSettings

END = 0


@pytest.fixture(params=["tiny_model_folder", "tiny_twin_folder"])
def model(request):
    return load_model(request.getfixturevalue(request.param))


@pytest.fixture
def features(model):
    torch.manual_seed(1)
    encoder = model.encoder
    return ImageFeatures(
        torch.randn(2, encoder.memory_positions, encoder.memory_width), torch.randn(2, encoder.summary_width)
    )


def draw(model, features, **change):
    decoding = model.config.decoding if model.kind == "autoregressive" else DecodingSettings(length=5)
    settings = {"captions_per_image": 3, "steps": 2, "end_id": END, **change}
    generator = torch.Generator().manual_seed(4)
    return draw_captions(model, features, decoding, generator=generator, **settings)


def test_every_word_is_counted_once_with_its_probability(model, features):
    drawn = draw(model, features)
    assert drawn.tokens.shape[0] == 6
    counts = torch.bincount(drawn.caption_of, minlength=6)
    if model.kind == "diffusion":
        assert counts.tolist() == [5] * 6
    else:
        for row, count in zip(drawn.tokens.tolist(), counts.tolist(), strict=True):
            assert count == (row.index(END) + 1 if END in row else len(row))
    assert (drawn.log_probabilities <= 0).all()
    drawn.log_probabilities.sum().backward()
    assert all(
        parameter.grad is not None
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith(("image_free", "length_head"))
    )


@pytest.mark.parametrize("model", ["tiny_model_folder"], indirect=True)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_log_probabilities_are_those_of_the_states_the_words_were_drawn_in(model, features, steps):
    """Against the decoder's own predictor, step by step: no grouping by picture, no gathering of words."""
    drawn = draw(model, features, steps=steps)
    lengths = torch.full((6,), 5)
    plan = plan_steps(lengths, lengths, model.config.diffusion.steps, steps)
    with torch.no_grad():
        predict = build_predictor(model, model.project_memory(features), lengths, 1.0, 3)
        start, generator = start_tokens(lengths, model.mask_id), torch.Generator().manual_seed(4)
        states = draw_best_first(predict, start, plan, model.mask_id, generator)
        assert torch.equal(states[-1], drawn.tokens)
        expected = torch.zeros(6)
        for timestep, before, after in zip(plan.timesteps, states[:-1], states[1:], strict=True):
            chosen = predict(before, timestep).gather(2, drawn.tokens.unsqueeze(2)).squeeze(2)
            expected += torch.where(before != after, chosen, 0.0).sum(dim=1)
    found = torch.zeros(6).index_add(0, drawn.caption_of, drawn.log_probabilities.detach())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_captions_probability_is_the_product_of_its_words():
    """Against exhaustive enumeration: three words, three positions, one or two positions a step."""
    torch.manual_seed(0)
    table = torch.randn(4, 4, 4, 3, 3)  # a distribution over words at every position, for every state
    vocabulary, captions = 3, 20_000

    def predict(tokens, _):
        return table[tuple(tokens.unbind(1))].log_softmax(dim=2)

    lengths = torch.full((captions,), 3)
    plan = plan_steps(lengths, lengths, 20, 2)
    generator = torch.Generator().manual_seed(0)
    states = draw_best_first(predict, start_tokens(lengths, vocabulary), plan, vocabulary, generator)
    log_p = torch.zeros(captions)
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        is_drawn = before != after
        assert (is_drawn.sum(dim=1) == plan.quotas[step]).all()
        chosen = predict(before, None).gather(2, after.clamp(max=2).unsqueeze(2)).squeeze(2)
        log_p += torch.where(is_drawn, chosen, 0.0).sum(dim=1)
    total = 0.0
    for caption in itertools.product(range(3), repeat=3):
        mine = (states[-1] == torch.tensor(caption)).all(dim=1)
        if not mine.any():
            continue
        probability = log_p[mine].exp()
        assert torch.allclose(probability, probability[0])  # one way leads to each caption
        expected = float(probability[0])
        spread = (expected * (1 - expected) / captions) ** 0.5
        assert abs(float(mine.float().mean()) - expected) < 5 * spread + 1e-6
        total += expected
    assert total == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("model", ["tiny_model_folder"], indirect=True)
def test_some_steps_of_a_drawing_are_part_of_all_steps(model, features):
    whole = draw(model, features, steps=None)
    part = draw(model, features, steps=None, learned_steps=2)
    assert torch.equal(part.tokens, whole.tokens)
    assert torch.bincount(part.caption_of, minlength=6).tolist() == [2] * 6
    for caption in range(6):
        all_words = whole.log_probabilities[whole.caption_of == caption]
        for word in part.log_probabilities[part.caption_of == caption]:
            assert torch.isclose(all_words, word, atol=1e-5).any()


@pytest.mark.parametrize("model", ["tiny_model_folder"], indirect=True)
def test_candidates_are_drawn_of_their_lengths_in_turn(model, features):
    decoding = DecodingSettings(length=5, candidates=2)
    generator = torch.Generator().manual_seed(4)
    drawn = draw_captions(
        model, features, decoding, captions_per_image=3, steps=None, end_id=END, generator=generator
    )
    assert torch.bincount(drawn.caption_of).tolist() == [5, 6, 5] * 2


def test_the_same_seed_draws_the_same(model, features):
    assert torch.equal(draw(model, features).tokens, draw(model, features).tokens)
