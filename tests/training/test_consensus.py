from pathlib import Path

import pytest

from ddcap.data.karpathy import CaptionedImage
from ddcap.training.consensus import consensus

TEXTS = [
    ["A dog runs on the grass .", "A dog runs over the grass .", "What a day !"],
    ["Two people talk on a bench .", "Two people talk .", "Two people sit on a bench ."],
    ["A cat sleeps ."],
]
RECORDS = [
    CaptionedImage(str(number), Path("x"), "train", tuple(texts)) for number, texts in enumerate(TEXTS)
]


def test_a_caption_unlike_the_others_agrees_least():
    agreement = consensus(RECORDS)
    assert [len(row) for row in agreement] == [3, 3, 1]
    assert min(agreement[0]) == agreement[0][2] == pytest.approx(0.0)  # shares no word with the others
    assert min(agreement[0][:2]) > 0.4
    assert agreement[2] == [0.0]


def test_pictures_with_one_caption_need_no_scores():
    assert consensus(RECORDS[2:]) == [[0.0]]
