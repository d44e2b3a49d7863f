"""The figures come from a script, and show what the model computes."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from ddcap import Captioner
from website.appearing import caption_appears
from website.decoded import Decoded
from website.diagram import draw_diagram, mermaid_of, read_diagram
from website.figures import FIGURES, PHOTO

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
# other figures of the documents: what draws them
SCRIPTS = {
    "confidence.png": "benchmarks/confidence.py",
    "page.png": "benchmarks/draw_page.py",
    "browser.png": "benchmarks/browser.py",
    "results_": "experiments/charts.py",
}


@pytest.fixture(scope="module")
def decoded():
    return Decoded(Captioner.from_pretrained(runtime="torch", precision="float32"), PHOTO)


def test_every_image_has_its_script():
    drawn = {*(f"{name}.png" for name in FIGURES), "architecture.png", "caption_appears.svg"}
    assert drawn <= {path.name for path in IMAGES.iterdir()}
    for path in IMAGES.iterdir():
        if path.name not in drawn:
            (script,) = (script for name, script in SCRIPTS.items() if path.name.startswith(name))
            assert (ROOT / script).exists(), script


def test_every_step_commits_its_surest_guess(decoded):
    rows = decoded.guesses()
    assert len(rows) == decoded.steps
    standing = set()
    for row in rows:
        fresh = {place for place, guess in enumerate(row) if guess.committed} - standing
        left = {place for place, guess in enumerate(row) if not guess.committed}
        assert fresh
        assert all(row[one].probability >= row[other].probability for one in fresh for other in left)
        standing |= fresh
    said = [guess.word for guess in rows[-1] if guess.word != "end"]
    assert " ".join(said) == decoded.caption.text


def test_guidance_raises_what_the_image_supports(decoded):
    words, chances = decoded.guided(2, 1, [0.0, 1.0, 1.17], 3)
    place = words.index("cup")
    assert chances[0, place] < chances[1, place] < chances[2, place]


def test_the_forward_process_leaves_less_and_less(decoded):
    rows = decoded.noised([0, 19], seed=5)
    assert rows[0] == decoded.words(decoded.result.tokens[0])
    assert rows[1].count("MASK") > len(rows[1]) / 2


def test_figures_are_drawn(decoded, tmp_path):
    for name in ("paper_best_first", "paper_concentrated_mask"):
        FIGURES[name](decoded).savefig(tmp_path / f"{name}.png", bbox_inches="tight")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300


def test_the_animated_caption_is_small_and_whole_without_motion(decoded):
    svg = caption_appears(PHOTO, decoded.caption)
    assert len(svg) < 400_000
    tree = ElementTree.fromstring(svg)
    texts = [
        node.text for node in tree.iter("{http://www.w3.org/2000/svg}text") if "word" in node.get("class")
    ]
    assert " ".join(texts) == decoded.caption.text
    assert "prefers-reduced-motion" in svg and "prefers-color-scheme: dark" in svg
    assert "<script" not in svg and not re.search(r'href="https?:', svg)
    rules = set(re.findall(r"@keyframes (\w+)", svg))
    assert rules == set(re.findall(r"animation-name: (\w+)", svg))


def test_the_stored_animation_is_of_todays_caption():
    stored = ElementTree.parse(IMAGES / "caption_appears.svg").getroot()
    assert stored[0].text == Captioner.from_pretrained()(PHOTO)[0].text


def test_the_diagram_has_every_box_and_arrow_of_the_page():
    labels, arrows = read_diagram(mermaid_of((ROOT / "docs" / "architecture.md").read_text()))
    assert labels["denoiser"].startswith("model/denoiser.py") and len(labels) == 14
    assert ("sampler", "denoiser", True) in arrows and ("diffusion", "loss", False) in arrows
    figure = draw_diagram(mermaid_of((ROOT / "docs" / "architecture.md").read_text()))
    assert len(figure.axes[0].texts) == len(labels)
