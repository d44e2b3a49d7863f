"""Which tokens best-first inference commits first: the likeliest, or those by the largest margin."""

import itertools

import numpy as np
import pytest
import torch

from ddcap.arrays import like, to_host
from ddcap.captioner import Captioner
from ddcap.decoding.generate import generate
from ddcap.decoding.predictor import Predictor, choose_tokens
from ddcap.decoding.sampler import Drafts, denoise
from ddcap.decoding.schedulers.best_first import BestFirstScheduler, margin
from ddcap.errors import DDCapError, RecipeError
from ddcap.settings import DecodingSettings

KINDS = pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["torch", "numpy"])
MASK = 4
# the first position has the likeliest token, the second the larger lead, the third wants the second's
PROBABILITIES = np.array([[0.52, 0.45, 0.02, 0.01], [0.2, 0.15, 0.5, 0.15], [0.25, 0.25, 0.4, 0.1]])


class Fixed(Predictor):
    """Predicts the same whatever it sees."""

    def __init__(self):
        pass

    def logits(self, tokens, _, positions):
        return like(np.log(PROBABILITIES).astype(np.float32)[to_host(positions)], tokens)

    def likeliest(self, tokens, timestep, positions):
        return choose_tokens(self.logits(tokens, timestep, positions))


@KINDS
def test_margin_is_the_lead_over_the_second(kind):
    logits = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
    logits[0, 0, [2, 5]] = 9  # equals: no lead at all
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    ranked = np.sort(probabilities, axis=2)
    np.testing.assert_allclose(to_host(margin(kind(logits))), ranked[..., -1] - ranked[..., -2], atol=1e-6)


@KINDS
@pytest.mark.parametrize(("order", "places"), [("probability", [0, 1, 2]), ("margin", [1, 2, 0])])
def test_margin_and_probability_choose_differently(kind, order, places):
    lengths = kind(np.array([3]))
    tokens = kind(np.full((1, 3), MASK))
    result = denoise(Fixed(), Drafts(tokens, lengths), BestFirstScheduler(8, MASK, order=order))
    history = to_host(result.history)[:, 0]
    found = [
        int(np.flatnonzero((now == MASK) & (after != MASK))[0]) for now, after in itertools.pairwise(history)
    ]
    assert found == places
    # how sure the model is of a token stays its probability
    np.testing.assert_allclose(to_host(result.confidences)[0], PROBABILITIES.max(axis=1), rtol=1e-5)


@KINDS
def test_with_distinct_the_largest_margin_gets_the_word(kind):
    lengths, tokens = kind(np.array([3])), kind(np.full((1, 3), MASK))
    scheduler = BestFirstScheduler(8, MASK, distinct=True, order="margin")
    result = denoise(Fixed(), Drafts(tokens, lengths), scheduler, 1)
    assert to_host(result.history)[1, 0].tolist() == [0, 2, MASK]


def test_probability_is_the_default(tiny_model, features):
    def made(**changes):
        return generate(tiny_model, features, DecodingSettings(**changes), 0)

    assert torch.equal(made().history, made(order="probability").history)
    assert not torch.equal(made().history, made(order="margin").history)
    drawn = [
        generate(
            tiny_model,
            features,
            DecodingSettings(order="margin", temperature=1.0),
            0,
            generator=np.random.default_rng(seed),
        ).tokens
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("method", ["ancestral", "left_to_right"])
def test_other_methods_have_no_order(tiny_model_folder, method):
    with pytest.raises(RecipeError, match="order=margin: needs method=best_first"):
        Captioner.from_pretrained(tiny_model_folder).settings(order="margin", method=method)


def test_margin_order_excludes_required_words(tiny_model_folder, photos):
    captioner = Captioner.from_pretrained(tiny_model_folder)
    with pytest.raises(DDCapError, match="order=margin: cannot be combined with constraints on words"):
        captioner(photos[0], include=["cat"], order="margin")


def test_both_runtimes_commit_in_the_same_order(photos):
    """The default, in ONNX Runtime and in PyTorch, and not as by the probability."""
    runtimes = [
        Captioner.from_pretrained(runtime=runtime, precision="float32") for runtime in ("onnx", "torch")
    ]
    one, other = (runtime(photos, order="margin") for runtime in runtimes)
    assert [found.text for found in one] == [found.text for found in other]
    assert [found.text for found in one] != [found.text for found in runtimes[0](photos)]
