import itertools

import numpy as np
import pytest
import torch

from ddcap.arrays import like, to_host
from ddcap.captioner import Captioner
from ddcap.decoding.predictor import Predictor, choose_tokens
from ddcap.decoding.sampler import Drafts, denoise
from ddcap.decoding.schedulers.best_first import BestFirstScheduler
from ddcap.decoding.schedulers.blocks import BlockScheduler, plan_blocks
from ddcap.errors import RecipeError
from ddcap.settings import DecodingSettings

T, V = 20, 7
MASK = V
KINDS = pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["torch", "numpy"])


class Shown(Predictor):
    """Its answer depends on all that it is shown; it notes at which positions it is asked."""

    def __init__(self, seed):
        self.table = np.random.default_rng(seed).normal(size=(11, 16, V)).astype(np.float32)
        self.asked, self.shown = [], []

    def logits(self, tokens, _, positions):
        self.asked.append(to_host(positions))
        self.shown.append(to_host(tokens))
        state = (to_host(tokens) * np.arange(1, tokens.shape[1] + 1)).sum(axis=1) % 11
        return like(self.table[state[:, None], to_host(positions)], tokens)

    def likeliest(self, tokens, timestep, positions):
        return choose_tokens(self.logits(tokens, timestep, positions))

    def select(self, _):
        return self


def decoded(kind, block, steps=None, lengths=(11, 7, 4, 9), given=(), **settings):
    lengths = np.array(lengths)
    tokens = np.where(np.arange(lengths.max()) < lengths[:, None], MASK, 0)
    for row, place, token in given:
        tokens[row, place] = token
    predictor = Shown(3)
    drafts = Drafts(kind(tokens), kind(lengths), len(lengths))
    scheduler = BlockScheduler(T, MASK, block, **settings)
    result = denoise(predictor, drafts, scheduler, steps, np.random.default_rng(0))
    return result.on_host(), predictor


@KINDS
@pytest.mark.parametrize("block", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("steps", [None, 1, 3, 6])
@pytest.mark.parametrize("distinct", [False, True])
def test_a_block_begins_when_those_before_it_are_full(kind, block, steps, distinct):
    result, predictor = decoded(kind, block, steps, given=[(0, 5, 2), (1, 0, 1)], distinct=distinct)
    assert (result.tokens != MASK).all()
    for before, after in itertools.pairwise(result.history):
        for now, then in zip(before, after, strict=True):
            places = np.flatnonzero(now != then)
            if len(places):
                assert len({*(places // block)}) == 1
                assert (now[: places[0] // block * block] != MASK).all()
    # nothing is asked but what may be committed
    for shown, asked in zip(predictor.shown, predictor.asked, strict=True):
        current = [np.flatnonzero(row == MASK) // block for row in shown]
        most = max((int((of == of[0]).sum()) for of in current if len(of)), default=1)
        assert asked.shape[1] == most


@KINDS
def test_one_block_is_best_first(kind):
    lengths = np.array([9, 5])
    tokens = kind(np.where(np.arange(9) < lengths[:, None], MASK, 0))
    drafts = Drafts(tokens, kind(lengths), 2)
    for steps in (None, 4):
        whole = denoise(Shown(5), drafts, BestFirstScheduler(T, MASK), steps).on_host()
        block = denoise(Shown(5), drafts, BlockScheduler(T, MASK, 9), steps).on_host()
        for name, value in vars(whole).items():
            np.testing.assert_array_equal(value, getattr(block, name), err_msg=name)


def test_one_token_a_block_is_left_to_right():
    result, _ = decoded(np.asarray, 1, lengths=(5,))
    assert (result.history[:, 0] != MASK).sum(axis=1).tolist() == [0, 1, 2, 3, 4, 5]
    for step in range(6):
        assert (result.history[step, 0, :step] != MASK).all()


@pytest.mark.parametrize("steps", [None, 1, 2, 5, 8])
def test_steps_are_shared_out_by_the_size_of_blocks(steps):
    blanks, lengths = np.array([[4, 4, 3], [0, 2, 0], [1, 1, 1]]), np.array([11, 8, 3])
    plan = plan_blocks(blanks, lengths, T, steps)
    assert plan.quotas.sum(axis=0).tolist() == [11, 2, 3]
    taken = (plan.quotas > 0).sum(axis=0).tolist()
    assert taken == [min(max(steps or 99, blocks), size) for blocks, size in ((3, 11), (1, 2), (3, 3))]
    for caption in range(3):
        committed, edges = np.cumsum(plan.quotas[:, caption]), np.cumsum(blanks[caption])
        assert {*edges.tolist()} <= {0, *committed.tolist()}  # no step crosses the end of a block
    left = lengths[0] - np.cumsum(plan.quotas[:, 0]) + plan.quotas[:, 0]
    assert plan.timesteps[:, 0].tolist() == np.minimum(left * T // 11, T - 1).tolist()


def test_a_caption_does_not_depend_on_its_batch():
    together, _ = decoded(np.asarray, 3, 5, lengths=(11, 4))
    for row, length in enumerate((11, 4)):
        alone, _ = decoded(np.asarray, 3, 5, lengths=(length,))
        assert alone.tokens[0].tolist() == together.tokens[row, :length].tolist()


def test_words_given_behind_a_block_count():
    plain, _ = decoded(np.asarray, 2, lengths=(8,))
    told = [decoded(np.asarray, 2, lengths=(8,), given=[(0, 6, word)])[0] for word in range(V)]
    assert all(one.tokens[0, 6] == word for word, one in enumerate(told))
    assert any(one.tokens[0, 0] != plain.tokens[0, 0] for one in told)


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


def test_the_default_writes_blocks(default, photos):
    """Both ends of what blocks are: left to right by ones, and the whole caption at once."""
    (whole,), (one,), (four,) = (
        default(photos[4], **{"candidates": 1, "guidance": 1, **changes})
        for changes in ({}, {"block": 1, "steps": None}, {"block": 4})
    )
    order = [event.position for event in one.trace.events]
    assert order == sorted(order)
    blocks = [event.position // 4 for event in four.trace.events]
    assert blocks == sorted(blocks)
    assert default(photos[4], candidates=1, guidance=1, block=99)[0] == whole


def test_blocks_obey_what_is_asked(default, photos):
    (caption,) = default(photos[4], block=3, include=["red cup"], ban=["table"], min_words=7)
    assert "red cup" in caption.text and "table" not in caption.text
    assert len(caption.text.split()) >= 7
    assert default.infill(photos[4], "a ___ on a [2]", block=2).text.startswith("a ")


def test_blocks_are_a_way_of_best_first(default):
    with pytest.raises(RecipeError, match="block=3: needs method=best_first and schedule=per_caption"):
        default.settings(block=3, method="ancestral", distinct=False)
    with pytest.raises(RecipeError, match="block=0"):
        default.settings(block=0)
    assert DecodingSettings().block is None
