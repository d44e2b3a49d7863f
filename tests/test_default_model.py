"""The model that is shipped inside the package."""

import json
import socket
from pathlib import Path

import pytest
from PIL import Image

import ddcap
from ddcap import Captioner
from ddcap.cli import main
from ddcap.data.images import load_image

FOLDER = Path(ddcap.__file__).parent / "pretrained" / "default"


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


def test_it_is_complete_and_at_most_40_mb():
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files.keys()
    assert sum(files.values()) <= 40_000_000


def test_it_needs_no_network(monkeypatch, photos):
    def refuse(*_):
        raise AssertionError("the default model tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert Captioner.from_pretrained()(photos[0])[0].text


def test_it_sees_what_is_in_the_pictures(default, photos):
    said = {photo.stem: caption.text.split() for photo, caption in zip(photos, default(photos), strict=True)}
    assert {"man", "woman", "boy", "girl", "person", "child"} & set(said["camera"])
    assert {"man", "woman", "boy", "girl", "person", "child"} & set(said["astronaut"])
    assert len({tuple(words) for words in said.values()}) > len(photos) // 2  # not one caption for everything
    assert all(3 <= len(words) <= 20 for words in said.values())


def test_a_length_that_a_person_asks_for_is_exact(default, photos, capsys):
    assert default.decoding.candidates > 1  # of several lengths, when nobody asks for one
    for length in (2, 9, 20):
        for caption in default(photos, length=length):
            assert len(caption.tokens) == caption.length == length
            assert caption.tokens.index("") == length - 1  # the end token last, and nowhere else
    (several,) = default.caption_each(photos[:1], num=3, length=7)
    assert [caption.tokens.index("") for caption in several.captions] == [6] * 3
    assert main(["caption", "--length", "9", "--format", "jsonl", *map(str, photos[:3])]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["length"], line["tokens"].index("")) for line in lines] == [(9, 8)] * 3


def test_every_shape_of_a_photograph_is_accepted(default, photos):
    image = load_image(photos[1])
    for size in ((640, 200), (200, 640), (31, 33), (1600, 1200)):
        caption = default(image.resize(size, Image.Resampling.BICUBIC))[0]
        assert caption.text


def test_a_photograph_and_its_squashed_copy_are_said_alike(default, photos):
    # the training pictures are squashed to squares: a user's photograph has to go the same way
    wide = load_image(next(photo for photo in photos if photo.stem == "chelsea"))
    assert wide.width != wide.height
    squashed = wide.resize((600, 600), Image.Resampling.LANCZOS)
    exact = Captioner(default.model, default.tokenizer, precision="float32")
    first, second = exact([wide, squashed])
    assert first.text == second.text
