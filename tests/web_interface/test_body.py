"""What both pages begin with: closed options, and sample photographs of examples/ with their credit."""

import re
from pathlib import Path

import pytest

from ddcap.web_interface import INTERFACE, interface_body


@pytest.fixture(scope="module")
def samples():
    return sorted((INTERFACE / "samples").iterdir())


def test_the_options_are_closed_at_first():
    assert '<details class="options">' in interface_body()


def test_samples_are_three_of_the_examples(samples, repository_examples):
    assert len(samples) == 3
    for sample in samples:
        assert sample.read_bytes() == repository_examples[sample.name].read_bytes()
    assert set(re.findall(r'data-sample="(.*?)"', interface_body())) == {one.name for one in samples}


def test_authors_and_licences_of_samples_are_named(samples, repository_examples):
    for sample in samples:
        credits = (repository_examples[sample.name].parent / "CREDITS.md").read_text()
        author, licence = re.search(rf"`{sample.name}` \| (.+?) \| (.+?) \|", credits).groups()
        assert author in interface_body() and licence == "CC0" and licence in interface_body()


@pytest.fixture(scope="module")
def repository_examples():
    root = Path(__file__).parents[2] / "examples"
    return {path.name: path for folder in ("animals", "photos") for path in (root / folder).glob("*.jpg")}
