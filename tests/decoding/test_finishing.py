"""Infilled and rewritten captions say how sure the model is, as all others do."""

import pytest

from ddcap.captioner import Captioner
from ddcap.decoding.caption import confidence_of


@pytest.fixture(scope="module", params=["onnx", "torch"])
def captioner(request):
    return Captioner.from_pretrained(runtime=request.param, precision="float32")


def judged_again(captioner, caption, image):
    features = captioner.features([image])
    known = captioner.confidence.known(features).tolist()[0]
    return captioner.confidence.judge(caption, features, 0, known, captioner.model.vocabulary)


def test_an_infilled_caption_says_how_sure_it_is(captioner, photos):
    caption = captioner.infill(photos[4], "a ___ on a wooden [1]")
    assert 0 < caption.sure < 1 and 0 < caption.faithful < 1 and caption.known > 0.5
    assert {*confidence_of(caption)} == {"sure", "faithful", "known", "doubtful"}
    assert judged_again(captioner, caption, photos[4]) == caption


def test_a_given_word_can_be_doubtful(captioner, photos):
    right, wrong = (captioner.infill(photos[4], f"a ___ {word} on a ___") for word in ("cup", "zebra"))
    assert "zebra" in wrong.doubtful and "cup" not in right.doubtful
    # `sure` counts given tokens as certain; `faithful` also reads what is seen
    assert wrong.faithful < 0.9 * right.faithful


def test_concepts_of_the_user_do_not_raise_confidence(captioner, photos):
    """What counts is what the model sees."""
    told = captioner.infill(photos[4], "a ___ on a [1]", concepts="+zebra")
    assert judged_again(captioner, told, photos[4]) == told


def test_a_rewritten_caption_says_how_sure_it_is(captioner, photos):
    after = captioner.rewrite(photos[4], "a zebra on a table").after
    assert after is not None and "zebra" not in after.text
    assert judged_again(captioner, after, photos[4]) == after and 0 < after.sure < 1


def test_without_calibration_confidence_is_none(photos):
    default = Captioner.from_pretrained()
    plain = Captioner(default.model, default.tokenizer)
    caption = plain.infill(photos[4], "a ___ on a wooden [1]")
    assert caption.sure is None and caption.doubtful == ()
    assert caption.text == default.infill(photos[4], "a ___ on a wooden [1]").text
