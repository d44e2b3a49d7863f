"""Focus: which positions a step looks at, against a slow loop over captions."""

import numpy as np
import pytest
import torch

from ddcap.arrays import like, to_host
from ddcap.captioner import Captioner
from ddcap.decoding.predictor import Predictor, choose_tokens
from ddcap.decoding.sampler import Drafts, denoise
from ddcap.decoding.schedulers.best_first import BestFirstScheduler, margin
from ddcap.decoding.schedulers.blocks import BlockScheduler
from ddcap.decoding.schedulers.focus import REACH
from ddcap.errors import RecipeError
from ddcap.settings import DecodingSettings, parse_settings

T, V = 20, 7
MASK = V
LENGTHS = (11, 7, 4, 9)
KINDS = pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["torch", "numpy"])
TABLE = np.random.default_rng(3).normal(size=(11, 20, V)).astype(np.float32)


def state_of(caption):
    """Which row of the table a caption reads, whatever padding is behind it."""
    return int((caption * np.arange(1, len(caption) + 1)).sum() % 11)


class Shown(Predictor):
    """Its answer depends on all that it is shown; it notes where it is asked, by caption."""

    def __init__(self, lengths, rows=None, asked=None):
        self.lengths, self.rows = lengths, np.arange(len(lengths)) if rows is None else rows
        self.asked = [[] for _ in lengths] if asked is None else asked

    def logits(self, tokens, _, positions):
        shown, places = to_host(tokens), to_host(positions)
        for row, one in zip(self.rows, places, strict=True):
            self.asked[row].append(set(one.tolist()))
        states = [state_of(one[: self.lengths[row]]) for row, one in zip(self.rows, shown, strict=True)]
        return like(TABLE[np.array(states)[:, None], places], tokens)

    def likeliest(self, tokens, timestep, positions):
        return choose_tokens(self.logits(tokens, timestep, positions))

    def select(self, rows):
        return Shown(self.lengths, self.rows[to_host(rows)], self.asked)


def start(lengths, given=()):
    tokens = np.where(np.arange(max(lengths)) < np.array(lengths)[:, None], MASK, 0)
    for row, place, token in given:
        tokens[row, place] = token
    return tokens


def decoded(kind, lengths=LENGTHS, steps=None, given=(), block=None, **settings):
    tokens = start(lengths, given)
    predictor = Shown(np.array(lengths))
    drafts = Drafts(kind(tokens), kind(np.array(lengths)), len(lengths))
    if block is None:
        scheduler = BestFirstScheduler(T, MASK, **settings)
    else:
        scheduler = BlockScheduler(T, MASK, block, **settings)
    result = denoise(predictor, drafts, scheduler, steps, np.random.default_rng(0))
    return result.on_host(), predictor.asked


def slowly(tokens, steps, focus, order):
    """One caption, position by position: its words, and where it looked in each step."""
    tokens, blanks, looked = tokens.copy(), int((tokens == MASK).sum()), []
    steps = min(blanks, steps or T)
    sure, wants = np.zeros(len(tokens), np.float32), np.ones(len(tokens), bool)
    for step in range(steps):
        quota = blanks * (step + 1) // steps - blanks * step // steps
        is_open = [place for place in range(len(tokens)) if tokens[place] == MASK]
        ranked = sorted(is_open, key=lambda place: (-sure[place], place))
        asked = sorted({*ranked[: max(focus, quota)], *(place for place in is_open if wants[place])})
        looked.append(set(asked))
        logits = torch.from_numpy(TABLE[state_of(tokens), asked])
        words = logits.argmax(dim=1).tolist()
        certainty = margin(logits) if order == "margin" else logits.softmax(dim=1).amax(dim=1)
        sure[asked] = certainty.numpy()
        wants[asked] = False
        best = sorted(asked, key=lambda place: (-sure[place], place))[:quota]
        for place in best:
            tokens[place] = words[asked.index(place)]
            near = slice(max(0, place - REACH), place + REACH + 1)
            wants[near] = True
    return tokens, looked


@KINDS
@pytest.mark.parametrize("focus", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [None, 3, 6])
@pytest.mark.parametrize("order", ["probability", "margin"])
def test_a_step_looks_where_a_slow_loop_does(kind, focus, steps, order):
    given = [(0, 5, 2), (1, 0, 1), (3, 8, 4)]
    result, asked = decoded(kind, steps=steps, given=given, focus=focus, order=order)
    for row, length in enumerate(LENGTHS):
        tokens, looked = slowly(start(LENGTHS, given)[row, :length], steps, focus, order)
        assert result.tokens[row, :length].tolist() == tokens.tolist()
        assert asked[row][: len(looked)] == looked


@KINDS
def test_it_looks_at_fewer_positions_than_without(kind):
    lengths = (20, 18)
    everywhere, focused = (decoded(kind, lengths, focus=focus)[1] for focus in (0, 1))
    for row, length in enumerate(lengths):
        looked = [sum(map(len, asked[row])) for asked in (everywhere, focused)]
        assert looked[0] == length * (length + 1) / 2
        assert looked[1] < 0.7 * looked[0]
        assert len(focused[row][0]) == length  # nothing is known before the first step


@KINDS
@pytest.mark.parametrize("settings", [{}, {"distinct": True, "steps": 5}, {"order": "margin"}, {"block": 4}])
def test_with_as_many_positions_as_a_caption_has_it_changes_nothing(kind, settings):
    plain, everywhere = decoded(kind, **settings)
    wide, asked = decoded(kind, focus=max(LENGTHS), **settings)
    assert np.array_equal(plain.history, wide.history)
    assert np.array_equal(plain.confidences, wide.confidences)
    assert asked == everywhere


@KINDS
@pytest.mark.parametrize(
    "settings", [{}, {"distinct": True, "steps": 4}, {"block": 3}, {"steps": 2}, {"temperature": 1.0}]
)
def test_every_mask_is_filled_and_given_words_stay(kind, settings):
    given = [(0, 5, 2), (1, 0, 1)]
    result, _ = decoded(kind, given=given, focus=1, **settings)
    for row, length in enumerate(LENGTHS):
        assert MASK not in result.tokens[row, :length]
    for row, place, token in given:
        assert result.tokens[row, place] == token


@KINDS
@pytest.mark.parametrize("settings", [{}, {"distinct": True, "steps": 4}, {"block": 3}, {"order": "margin"}])
def test_a_caption_does_not_depend_on_its_batch(kind, settings):
    together, asked = decoded(kind, focus=2, **settings)
    for row, length in enumerate(LENGTHS):
        alone, own = decoded(kind, [length], focus=2, **settings)
        assert np.array_equal(alone.tokens[0], together.tokens[row, :length])
        assert asked[row][: len(own[0])] == own[0]


def test_with_a_block_it_looks_within_the_current_one():
    _, asked = decoded(np.asarray, (12,), block=4, focus=2)
    for step, places in enumerate(asked[0]):
        assert {place // 4 for place in places} == {step // 4}


def test_the_default_looks_at_few_and_both_runtimes_caption_alike(photos):
    light, torch_ = (Captioner.from_pretrained(runtime=name) for name in ("onnx", "torch"))
    assert light.decoding.focus > 0
    assert [light.settings(preset=name).focus for name in ("best", "fast")] == [0, 0]
    for photo in photos[:3]:
        assert light(photo, focus=1)[0].text == torch_(photo, focus=1)[0].text
        assert light(photo, focus=20)[0].text == light(photo, focus=0)[0].text


def test_wrong_settings_get_one_line():
    with pytest.raises(RecipeError, match="focus=-1: input should be greater than or equal to 0"):
        parse_settings(DecodingSettings, {"focus": -1}, "decoding settings")
    with pytest.raises(RecipeError, match="focus=2: needs method=best_first and schedule=per_caption"):
        parse_settings(DecodingSettings, {"focus": 2, "method": "ancestral"}, "decoding settings")
