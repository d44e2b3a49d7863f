from pathlib import Path

import pytest

from ddcap.data.karpathy import CaptionedImage
from ddcap.training.consensus import consensus_weights

TEXTS = [
    ["A dog runs on the grass .", "A dog runs over the grass .", "What a day !"],
    ["Two people talk on a bench .", "Two people talk .", "Two people sit on a bench ."],
    ["A cat sleeps ."],
]
RECORDS = [
    CaptionedImage(str(number), Path("x"), "train", tuple(texts)) for number, texts in enumerate(TEXTS)
]


def test_a_caption_unlike_the_others_weighs_least():
    weights = consensus_weights(RECORDS, 0.5)
    assert [len(row) for row in weights] == [3, 3, 1]
    assert min(weights[0]) == weights[0][2] == pytest.approx(1.0)  # shares no word with the others
    assert min(weights[0][:2]) > 2
    assert weights[2] == [1.0]


def test_a_high_temperature_makes_them_alike():
    sharp, flat = (consensus_weights(RECORDS, temperature)[0] for temperature in (0.3, 30.0))
    assert max(sharp) / min(sharp) > 5 * max(flat) / min(flat)
    assert max(flat) / min(flat) < 1.2


def test_pictures_with_one_caption_need_no_scores():
    assert consensus_weights(RECORDS[2:], 0.5) == [[1.0]]
