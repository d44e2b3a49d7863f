"""Drafts of a caption, and other words in place of one."""

import numpy as np
import pytest

from ddcap import Captioner
from ddcap.choices import MOST, caption_drafts, word_alternatives
from ddcap.errors import DDCapError


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained(precision="float32")


def test_the_first_draft_is_the_caption(default, photos):
    for wish in ({}, {"ban": ["a"]}, {"include": ["red ball"]}, {"steps": 4}):
        drafts = caption_drafts(default, photos[0], **wish)
        assert drafts[0] == default(photos[0], **wish)[0]
        assert len(drafts) == 4 and len({one.length for one in drafts}) == 4
        assert all(one.sure is not None for one in drafts)
    (only,) = caption_drafts(default, photos[0], length=8)
    assert only == default(photos[0], length=8)[0]


def test_other_words_are_ranked_by_their_probability(default, photos):
    words = default(photos[0])[0].text.split()
    for place in (0, len(words) - 1):
        found = word_alternatives(default, photos[0], words, place)
        chances = [one.probability for one in found]
        assert 2 <= len(found) <= MOST and chances == sorted(chances, reverse=True)
        assert chances[-1] > 0 and sum(chances) <= 1
        assert words[place] not in [one.word for one in found] and "" not in [one.word for one in found]
        assert all(" " not in one.word for one in found)


def test_a_word_that_does_not_fit_is_replaced_by_the_one_that_does(default, photos):
    words = default(photos[0])[0].text.split()
    place = int(np.argmax([len(word) for word in words]))
    others = word_alternatives(default, photos[0], [*words[:place], "xylophone", *words[place + 1 :]], place)
    assert others[0].word == words[place]


def test_banned_words_are_not_offered(default, photos):
    words = default(photos[0])[0].text.split()
    first, *_ = word_alternatives(default, photos[0], words, 1)
    others = word_alternatives(default, photos[0], words, 1, ban=[first.word])
    assert others and first.word not in [one.word for one in others]


def test_impossible_requests_for_alternatives_are_refused(default, photos):
    with pytest.raises(DDCapError, match="word 7: the caption has 2 words"):
        word_alternatives(default, photos[0], ["a", "cat"], 7)
    with pytest.raises(DDCapError, match="cannot spell '猫'"):
        word_alternatives(default, photos[0], ["a", "猫"], 0)
    with pytest.raises(DDCapError, match="longer than 20 tokens"):
        word_alternatives(default, photos[0], ["cat"] * 30, 3)


def test_an_autoregressive_model_offers_none(tiny_ar_folder, photos):
    with pytest.raises(DDCapError, match="use a diffusion model"):
        word_alternatives(Captioner.from_pretrained(tiny_ar_folder), photos[0], ["a"], 0)
