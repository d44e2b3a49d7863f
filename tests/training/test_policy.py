import itertools

import pytest
import torch

from ddcap.decoding.best_first import plan_steps
from ddcap.decoding.generate import start_tokens
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import load_model
from ddcap.recipe import DecodingSettings
from ddcap.training.policy import draw_best_first, draw_captions

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
    return draw_captions(model, model, features, decoding, generator=generator, **settings)


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


def test_a_caption_alone_and_in_a_batch_has_the_same_probability(model, features):
    both = draw(model, features)
    one = ImageFeatures(features.memory[:1], features.summary[:1])
    generator = torch.Generator().manual_seed(4)
    decoding = model.config.decoding if model.kind == "autoregressive" else DecodingSettings(length=5)
    alone = draw_captions(
        model, model, one, decoding, captions_per_image=3, steps=2, end_id=END, generator=generator
    )
    for number, (first, second) in enumerate(zip(both.tokens[:3], alone.tokens, strict=True)):
        if model.kind == "diffusion" and torch.equal(first, second):
            torch.testing.assert_close(
                both.log_probabilities[both.caption_of == number],
                alone.log_probabilities[alone.caption_of == number],
            )


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


def test_the_same_seed_draws_the_same(model, features):
    assert torch.equal(draw(model, features).tokens, draw(model, features).tokens)
