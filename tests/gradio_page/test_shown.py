"""What the page shows of a caption, without a page."""

import math

import pytest

from ddcap import Captioner
from ddcap.gradio_page.shown import shown_caption


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


def test_words_and_the_steps_that_committed_them(default, photos):
    for caption in default(photos[:3]):
        shown = shown_caption(caption, 10)
        words = ["".join(token["piece"] for token in word["tokens"]) for word in shown["words"]]
        assert " ".join(words) == caption.text == shown["text"]
        tokens = [token for word in shown["words"] for token in word["tokens"]]
        assert {token["step"] for token in tokens} | {shown["end"]} == set(range(1, shown["steps"] + 1))
        for number, frame in enumerate(caption.trace.frames, 1):  # as many tokens are there as in the trace
            there = sum(token["step"] <= number for token in tokens) + (shown["end"] <= number)
            assert there == sum(piece.strip() != "▁" for piece in frame)
        score = sum(math.log(token["probability"]) for token in tokens) / caption.length
        assert score == pytest.approx(caption.score, abs=0.05)
        assert {word for word, one in zip(words, shown["words"], strict=True) if one["doubtful"]} == set(
            caption.doubtful
        )
        assert not any(word["given"] for word in shown["words"])


def test_given_words_are_told_from_those_of_the_model(default, photos):
    shown = shown_caption(default.infill(photos[0], "a ___ on the [1]"), None)
    given = [word["given"] for word in shown["words"]]
    assert given[0] and not given[1] and not given[-1] and given[-3:-1] == [True, True]
    assert shown["end"] == 0
