"""Many images: the CPU prepares the next batch while one is captioned, and the captions are the same."""

import threading

import numpy as np
import pytest

from ddcap import Captioner
from ddcap.decoding.stream import _preparing_threads


@pytest.fixture
def captioner(tiny_model_folder):
    return Captioner.from_pretrained(tiny_model_folder, precision="float32")


def test_the_next_batch_is_prepared_while_one_is_captioned(captioner, tiny_model_folder, small_photos):
    plain, model = Captioner.from_pretrained(tiny_model_folder, precision="float32"), captioner.model
    events, has_next, really = [], threading.Event(), model.prepare

    def prepare(pixels):
        result = really(pixels)
        events.append(("prepared", threading.current_thread()))
        if sum(kind == "prepared" for kind, _ in events) == 2:
            has_next.set()
        return result

    def watch(_):  # before each step of a caption
        if not any(kind == "captioned" for kind, _ in events):
            assert has_next.wait(60), "the second batch is not prepared before the first is captioned"
            events.append(("captioned", threading.current_thread()))

    model.prepare = prepare
    watched = Captioner(model, captioner.tokenizer, "float32", watch=watch)
    found = list(watched.caption_each(small_photos[:6], batch_size=2))
    assert [kind for kind, _ in events].index("captioned") >= 2
    here = threading.current_thread()
    assert all((thread is here) == (kind == "captioned") for kind, thread in events)
    expected = [plain(small_photos[first : first + 2]) for first in (0, 2, 4)]
    assert [result.captions[0] for result in found] == [caption for pair in expected for caption in pair]


def test_what_is_prepared_gives_the_same_features(captioner, small_photos):
    pixels = np.stack([captioner.pixels(photo) for photo in small_photos[:3]])
    prepared = captioner.model.prepare(pixels)
    assert np.array_equal(prepared.pixels.numpy(), pixels) and not prepared.pixels.is_cuda
    pixels[:] = 0  # what was prepared does not change with it
    features = captioner.model.encode_prepared(prepared)
    assert np.array_equal(features.memory.numpy(), captioner.features(small_photos[:3]).memory.numpy())


def test_a_gpu_has_several_threads_that_prepare(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert (_preparing_threads("cpu"), _preparing_threads("cuda")) == (1, 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert _preparing_threads("cuda:1") == 6
