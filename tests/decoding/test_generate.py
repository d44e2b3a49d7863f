import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddcap.decoding.generate import choose_lengths, generate, nearest_lengths
from ddcap.decoding.sampler import Drafts, Sampler
from ddcap.errors import RecipeError
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings

END = 0  # the compact tokenizer's end token
METHODS = [
    {"method": "best_first"},
    {"method": "best_first", "schedule": "released"},
    {"method": "best_first", "temperature": 1.0},
    {"method": "best_first", "steps": 3},
    {"method": "ancestral"},
    {"method": "ancestral", "steps": 3},
]


def settings(**changes):
    return DecodingSettings(**changes)


def row(features, number):
    return ImageFeatures(features.memory[number : number + 1], features.summary[number : number + 1])


def seeded(seed=0):
    return np.random.default_rng(seed)


# lengths


def test_argmax_class_k_means_k_plus_one_tokens(tiny_model, features):
    found = choose_lengths(tiny_model, features, settings())
    with torch.no_grad():
        logits = tiny_model.length_logits(features)
    assert found.tolist() == [values.index(max(values)) + 1 for values in logits.tolist()]
    assert len(set(found.tolist())) > 1


def test_expected_length_is_the_rounded_mean(tiny_model, features):
    found = choose_lengths(tiny_model, features, settings(length_rule="expected"))
    with torch.no_grad():
        probabilities = tiny_model.length_logits(features).softmax(dim=1).tolist()
    means = [sum((k + 1) * p for k, p in enumerate(row)) for row in probabilities]
    assert found.tolist() == [round(mean) for mean in means]
    assert found.tolist() != choose_lengths(tiny_model, features, settings()).tolist()


def test_fixed_length_goes_first(tiny_model, features):
    for count in (1, 2):
        found = choose_lengths(tiny_model, features, settings(length=5, length_rule="expected"), count)
        assert found.tolist() == [5] * 3 * count


def test_fixed_length_over_the_longest_is_refused(tiny_model, features):
    assert choose_lengths(tiny_model, features, settings(length=12)).tolist() == [12] * 3
    with pytest.raises(RecipeError, match=r"13.*12 tokens"):
        choose_lengths(tiny_model, features, settings(length=13))


def test_without_length_head_captions_have_full_length(model_without_length_head, features):
    assert choose_lengths(model_without_length_head, features, settings()).tolist() == [12] * 3
    assert choose_lengths(model_without_length_head, features, settings(), 2).tolist() == [12] * 6


@pytest.mark.parametrize("count", [2, 3])
def test_several_captions_take_the_likeliest_lengths(tiny_model, features, count):
    found = choose_lengths(tiny_model, features, settings(), count).view(3, count)
    with torch.no_grad():
        logits = tiny_model.length_logits(features)
    for image in range(3):
        ranked = sorted(range(1, 13), key=lambda length: -logits[image, length - 1].item())
        assert found[image].tolist() == ranked[:count]


def test_captions_are_at_most_as_many_as_lengths(tiny_model, features):
    result = generate(tiny_model, features, settings(), END, captions_per_image=40)
    assert result.tokens.shape[0] == 3 * 12
    assert sorted(result.lengths[:12].tolist()) == list(range(1, 13))


def test_candidates_of_a_fixed_length_are_the_lengths_around_it(tiny_model, features):
    found = choose_lengths(tiny_model, features, settings(length=5, candidates=4), 4)
    assert found.tolist() == [5, 6, 4, 7] * 3
    assert nearest_lengths(12, 3, 12) == [12, 11, 10] and nearest_lengths(1, 3, 12) == [1, 2, 3]
    assert sorted(nearest_lengths(4, 99, 12)) == list(range(1, 13))


# captions


@pytest.mark.parametrize("changes", METHODS)
def test_every_position_up_to_the_length_becomes_a_word(tiny_model, features, changes):
    result = generate(tiny_model, features, settings(**changes), END, generator=seeded())
    assert torch.equal(result.lengths, choose_lengths(tiny_model, features, settings()))
    assert result.tokens.shape == (3, int(result.lengths.max()))
    assert ((result.tokens >= 0) & (result.tokens < tiny_model.mask_id)).all()
    is_padding = torch.arange(result.tokens.shape[1]) >= result.lengths.unsqueeze(1)
    assert ((result.history[0] == tiny_model.mask_id) == ~is_padding).all()
    assert (result.history[:, is_padding] == result.history[0, is_padding]).all()
    assert (result.confidences[~is_padding] < 1).all()


@pytest.mark.parametrize("changes", METHODS)
def test_same_seed_same_captions(tiny_model, features, changes):
    results = [
        generate(tiny_model, features, settings(**changes), END, generator=seeded(7)) for _ in range(2)
    ]
    for name, value in vars(results[0]).items():
        assert torch.equal(value, getattr(results[1], name)), name


@pytest.mark.parametrize("changes", [{"temperature": 1.0}, {"method": "ancestral"}])
def test_drawing_decoders_depend_on_the_seed(tiny_model, features, changes):
    one, other = (
        generate(tiny_model, features, settings(**changes), END, generator=seeded(seed)) for seed in (0, 1)
    )
    assert not torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize(
    "changes", [{}, {"guidance": 1.0}, {"steps": 3}, {"length_rule": "expected"}, {"candidates": 3}]
)
def test_a_batch_is_its_images_one_by_one(tiny_model, features, changes):
    together = generate(tiny_model, features, settings(**changes), END)
    captions = []
    for image in range(3):
        alone = generate(tiny_model, row(features, image), settings(**changes), END)
        length = int(alone.lengths[0])
        assert together.lengths[image] == length
        assert torch.equal(together.tokens[image, :length], alone.tokens[0])
        torch.testing.assert_close(
            together.confidences[image, :length], alone.confidences[0], rtol=1e-3, atol=1e-5
        )
        captions.append(tuple(alone.tokens[0].tolist()))
    assert len(set(captions)) == 3


def test_fixed_length_is_respected(tiny_model, features):
    for length in (1, 7, 12):
        result = generate(tiny_model, features, settings(length=length), END)
        assert result.tokens.shape == (3, length)
        assert result.lengths.tolist() == [length] * 3


def test_several_captions_are_grouped_by_image(tiny_model, features):
    together = generate(tiny_model, features, settings(), END, captions_per_image=4)
    assert together.tokens.shape[0] == 12
    lengths = together.lengths.view(3, 4)
    for image in range(3):
        assert len(set(lengths[image].tolist())) == 4
        for number, length in enumerate(lengths[image].tolist()):
            alone = generate(tiny_model, row(features, image), settings(length=length), END)
            assert torch.equal(together.tokens[4 * image + number, :length], alone.tokens[0])


@pytest.mark.parametrize("length", [6, "predicted"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_of_the_candidates_the_likeliest_is_kept(tiny_model, features, length, penalty):
    chosen = settings(length=length, candidates=5, length_penalty=penalty)
    kept = generate(tiny_model, features, chosen, END)
    best_three = generate(tiny_model, features, chosen, END, captions_per_image=3)
    lengths = choose_lengths(tiny_model, features, chosen, 5).view(3, 5)
    for image in range(3):
        one = row(features, image)
        alone = [generate(tiny_model, one, settings(length=n), END) for n in lengths[image].tolist()]
        evidence = [
            sum(math.log(value) for value in result.confidences[0].tolist())
            / len(result.tokens[0]) ** penalty
            for result in alone
        ]
        ranked = sorted(range(5), key=lambda number: -evidence[number])
        for number, result in [(image, kept), (3 * image, best_three), (3 * image + 2, best_three)]:
            expected = alone[ranked[number - (image if result is kept else 3 * image)]].tokens[0]
            assert torch.equal(result.tokens[number, : len(expected)], expected)
            assert result.lengths[number] == len(expected)
    assert kept.tokens.shape[1] == int(kept.lengths.max())


def test_a_higher_penalty_prefers_longer_captions(tiny_model, features):
    mean_lengths = [
        generate(tiny_model, features, settings(length=6, candidates=9, length_penalty=penalty), END)
        .lengths.float()
        .mean()
        for penalty in (0.0, 1.0, 4.0)
    ]
    assert mean_lengths == sorted(mean_lengths) and mean_lengths[0] < mean_lengths[-1]


def test_candidates_that_could_not_differ_are_refused(tiny_model):
    model = dataclasses.replace(tiny_model.config.model, length_prediction=False)
    settings(candidates=3, temperature=1.0).check_model(model, sees_concepts=False)
    settings(candidates=3, length=5).check_model(model, sees_concepts=False)
    with pytest.raises(ValueError, match="candidates=3"):
        settings(candidates=3).check_model(model, sees_concepts=False)


def test_settings_reach_the_decoder(tiny_model, features):
    plain = generate(tiny_model, features, settings(length=12), END)
    assert len(plain.timesteps) == 8
    assert len(generate(tiny_model, features, settings(length=12, steps=3), END).timesteps) == 3
    ancestral = generate(tiny_model, features, settings(length=12, method="ancestral", steps=3), END)
    assert len(ancestral.timesteps) == 3
    released = generate(tiny_model, features, settings(length=12, schedule="released"), END)
    assert released.timesteps[:, 0].tolist() == list(range(7, -1, -1))
    strong = generate(tiny_model, features, settings(length=12, guidance=4.0), END)
    assert not torch.equal(strong.tokens, plain.tokens)
    assert not torch.equal(
        generate(tiny_model, features, settings(length=12, temperature=1.0), END, generator=seeded()).tokens,
        plain.tokens,
    )


def test_ancestral_temperature_zero_means_not_set(tiny_model, features):
    unset, one = (
        generate(
            tiny_model,
            features,
            settings(method="ancestral", temperature=temperature),
            END,
            generator=seeded(),
        )
        for temperature in (0.0, 1.0)
    )
    assert torch.equal(unset.tokens, one.tokens)


@pytest.mark.parametrize("method", ["best_first", "ancestral"])
def test_the_end_token_fills_a_blank_only_where_it_may(tiny_model, features, method):
    def decoded(end_id, **changes):
        tokens, lengths = torch.full((3, 6), tiny_model.mask_id), torch.full((3,), 6)
        chosen = settings(method=method)
        with torch.no_grad():
            sampler = Sampler(tiny_model, features, chosen, end_id, generator=seeded())
            result = sampler.fill(Drafts(tokens, lengths, **changes))
        assert result.confidences.isfinite().all()
        return result.tokens

    free = decoded(END)
    favourite = int(free.flatten().mode().values)
    assert torch.equal(decoded(favourite), free)
    assert torch.equal(decoded(favourite, may_end=True), free)
    assert (decoded(favourite, may_end=False) != favourite).all()


@pytest.mark.parametrize("method", ["best_first", "ancestral"])
def test_decode_keeps_given_words(tiny_model, features, method):
    mask = tiny_model.mask_id
    tokens = torch.tensor([[mask, 5, mask, 7], [9, mask, 3, 3], [mask, mask, mask, 8]])
    lengths = torch.tensor([4, 3, 4])
    with torch.no_grad():
        sampler = Sampler(tiny_model, features, settings(method=method), END, generator=seeded())
        result = sampler.fill(Drafts(tokens, lengths))
    given = tokens != mask
    assert torch.equal(result.tokens[given], tokens[given])
    assert (result.tokens != mask).all()


def test_autocast_casts_each_weight_once(tiny_model, features):
    """In inference mode it would cast them at every step, which was half of the time of a caption."""
    casts = Counter()
    weights = {parameter.data_ptr() for parameter in tiny_model.denoiser.parameters()}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function is torch.ops.aten._to_copy.default and arguments[0].data_ptr() in weights:
                casts[arguments[0].data_ptr()] += 1
            return function(*arguments, **(keywords or {}))

    chosen = settings(length=8, steps=4)
    with torch.autocast("cpu", dtype=torch.bfloat16), Count():
        result = generate(tiny_model, features, chosen, END)
    assert len(result.timesteps) == 4
    assert casts and set(casts.values()) == {1}
