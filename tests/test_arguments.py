"""What a caller of a captioner gives: images in all ways, wrong values told in one line, pickles."""

import copy
import multiprocessing
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ddcap import Captioner
from ddcap.errors import DDCapError, ImageError


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


@pytest.fixture(scope="module")
def captioner(tiny_model_folder):
    return Captioner.from_pretrained(tiny_model_folder)


def test_images_in_all_ways(captioner, photos):
    content, array = photos[0].read_bytes(), np.asarray(Image.open(photos[0]).convert("RGB"))
    expected = captioner(photos[0])
    with photos[0].open("rb") as file:
        for source in (content, file, array, [array], array[None], iter([array])):
            assert captioner(source) == expected
        together = captioner([content, file, array])
        assert captioner.infill(file, "a ___").text == captioner.infill(photos[0], "a ___").text
        assert captioner.score(content, "a cat") == captioner.score(photos[0], "a cat")
    assert [one.tokens for one in together] == [one.tokens for one in expected * 3]
    for one in together:  # of three images, float32 is summed in another order
        assert one.confidences == pytest.approx(expected[0].confidences, rel=1e-5)
    assert [one.captions[0] for one in captioner.caption_each(content)] == expected
    assert captioner([]) == []


def test_images_without_a_name_are_numbered(captioner, photos):
    results = [*captioner.caption_each([photos[0], b"no image", 3, photos[1], None], batch_size=2)]
    assert [one.error and one.error.partition(":")[0] for one in results] == [
        None,
        "image 2",
        "image 3",
        None,
        "image 5",
    ]
    with pytest.raises(ImageError, match="image: is no image but of type int; give a path"):
        captioner(3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num": 2}, "num=2: a call returns one caption per image; use caption_each"),
        ({"lengths": [5, 6]}, "lengths=[5, 6]: a call returns one caption per image; use"),
        ({"max_chars": "40"}, "max_chars='40': is not a whole number; give a whole number, at least 1"),
        ({"min_words": 2.5}, "min_words=2.5: is not a whole number"),
        ({"include": [3]}, "include[0]=3: is not a text; give a str"),
        ({"include": 3}, "include=3: is not a text; give a str, or a list of them"),
        ({"ban": ["man", None]}, "ban[1]=None: is not a text"),
        ({"prefix": b"a"}, "prefix=b'a': is not a text"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"seed": None}, "seed=None: is not a whole number; give a whole number, at least 0"),
        ({"seed": True}, "seed=True: is not a whole number"),
        ({"batch_size": 1.5}, "batch_size=1.5: is not a whole number"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"preset": ["fast"]}, "preset=['fast']: is not a text"),
        ({"concepts": 3}, "concepts=3: is not a text"),
        ({"steps": "many"}, "steps=many: input should be a valid integer"),
        ({"neutral": 3}, "neutral 3: cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_in_one_line(default, photos, wrong, message):
    with pytest.raises(DDCapError, match=re.escape(message)) as refused:
        default(photos[0], **wrong)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one, photo: list(one.caption_each([photo], lengths=[])), "lengths: is empty; give at"),
        (lambda one, photo: list(one.caption_each([photo], lengths=5)), "lengths=5: is not a list"),
        (lambda one, photo: list(one.caption_each([photo], lengths=[5.5])), "lengths[0]=5.5: is not a whole"),
        (lambda one, photo: list(one.caption_each([photo], num="2")), "num='2': is not a whole number"),
        (lambda one, _: list(one.caption_each(5)), "image: is no image but of type int"),
        (lambda one, photo: one.score(photo, []), "captions: is empty; give at least one caption"),
        (lambda one, photo: one.score(photo, [None]), "captions[0]=None: is not a text"),
        (lambda one, photo: one.log_likelihood(photo, []), "captions: is empty"),
        (lambda one, photo: one.rewrite(photo, None), "caption=None: is not a text"),
        (lambda one, photo: one.rewrite(photo, "a cat", keep=[3]), "keep[0]=3: is not a text"),
        (lambda one, photo: one.rewrite(photo, "a cat", seed=-1), "seed=-1: must be at least 0"),
        (lambda one, photo: one.infill(photo, 3), "template=3: is not a text"),
        (lambda one, photo: one.infill(photo, "a ___", seed="x"), "seed='x': is not a whole number"),
        (lambda one, _: one.infill(None, "a ___"), "image: is no image but of type NoneType"),
    ],
)  # fmt: skip
def test_other_calls_say_what_is_wrong(captioner, photos, call, message):
    with pytest.raises(DDCapError, match=re.escape(message)) as refused:
        call(captioner, photos[0])
    assert "\n" not in str(refused.value)


def test_whole_numbers_of_numpy_are_whole_numbers(captioner, photos):
    asked = {"seed": np.int64(3), "batch_size": np.uint8(2), "num": np.int32(1), "temperature": 1.0}
    assert captioner(photos[0], **asked) == captioner(photos[0], seed=3, temperature=1.0)


def test_a_pickled_captioner_captions_alike(default, captioner, photos):
    for one in (default, captioner):
        again = pickle.loads(pickle.dumps(one))
        assert again(photos[0])[0].text == one(photos[0])[0].text
        assert (again.runtime, again.precision) == (one.runtime, one.precision)
        assert copy.deepcopy(one).tokenizer.to_json() == one.tokenizer.to_json()
    assert len(pickle.dumps(default)) < 1_000_000  # the graphs stay in their folder


def caption_elsewhere(work):
    """In another process."""
    captioner, photo = work
    return captioner(photo)[0].text


class Photos(torch.utils.data.Dataset):
    """Captions of photographs, as a data set of PyTorch."""

    def __init__(self, captioner, photos):
        self.captioner, self.photos = captioner, photos

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, number):
        return self.captioner(self.photos[number])[0].text


def test_a_captioner_goes_to_processes_that_were_spawned(default, photos):
    expected = [caption.text for caption in default(photos[:2])]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.map(caption_elsewhere, [(default, photo) for photo in photos[:2]]) == expected
    data = Photos(default, photos[:2])
    loader = torch.utils.data.DataLoader(data, num_workers=1, multiprocessing_context="spawn")
    assert [text for (text,) in loader] == expected
