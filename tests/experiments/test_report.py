import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ddcap.captioner import Captioner
from ddcap.commands import main
from ddcap.errors import DataError
from experiments.charts import save_charts
from experiments.gallery import choose_evenly, shown_words
from experiments.markdown import to_markdown
from experiments.report import render_report, write_report
from experiments.run import load_ablation


class Tags(HTMLParser):
    """Collects tags and what they point to, and sees that every tag is closed."""

    VOID = ("meta", "img", "br", "path", "use")

    def __init__(self):
        super().__init__()
        self.open, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes["src"])
        self.links += [value for name, value in attributes.items() if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def results(finished):
    return load_ablation(finished[0])


def test_the_page_is_whole_and_needs_no_other_file(finished, tmp_path):
    path = write_report(finished[0], tmp_path / "report.html", photos=3)
    page = Tags()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert len(page.images) == 3
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert path.read_text().count("<svg") == 5


def test_captions_are_escaped(results):
    nasty = {**results, "data": "<script>alert(1)</script>"}
    assert "<script>alert(1)" not in render_report(nasty, [])


def test_the_command_writes_the_page(finished, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(finished[0]), "--output", str(page), "--photos", "0"]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.is_file()
    assert main(["report", str(tmp_path)]) == 1
    assert "run `python -m experiments ablate`" in capsys.readouterr().err
    with pytest.raises(DataError, match="cannot be written"):
        write_report(finished[0], tmp_path / "none" / "page.html", photos=0)


def test_published_figures_make_a_page_without_a_gallery(tmp_path, capsys):
    figures = Path(__file__).parents[2] / "docs" / "results" / "comparison.json"
    command = ["report", str(figures), "--output", str(tmp_path / "report.html")]
    assert main(command) == 1
    assert "holds figures without models for the gallery; use --photos 0" in capsys.readouterr().err
    assert main([*command, "--photos", "0"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4 and "d, known padding" in page


def test_words_carry_confidence_and_order(finished, photos, results):
    captioner = Captioner.from_pretrained(finished[0] / results["models"]["g"])
    caption = captioner(photos[0])[0]
    words = shown_words(caption)
    assert " ".join(word.text for word in words) == caption.text
    assert all(word.confidence in caption.confidences for word in words)
    assert {word.order for word in words} == set(range(1, max(word.order for word in words) + 1))
    twin = Captioner.from_pretrained(finished[0] / results["models"]["twin"])
    orders = [word.order for word in shown_words(twin(photos[0])[0])]
    assert orders == sorted(orders)


def test_an_even_choice_is_spread_over_all():
    assert choose_evenly(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert choose_evenly(list(range(3)), 9) == [0, 1, 2]


def test_the_markdown_holds_every_row(results):
    text = to_markdown(results)
    for name in (
        "| a |",
        "| autoregressive, greedy |",
        "| autoregressive, beams |",
        "## Caption infilling",
        "### Guidance",
    ):
        assert name in text
    tables = re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE)
    for table in tables:
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_pages_name_the_tests_and_their_number(results):
    for page in (to_markdown(results), render_report(results, [])):
        assert "number of comparisons tested here, 2." in page
        assert "4 more have a row of one seed and are not tested" in page
        assert "p / Holm" in page
    text = to_markdown(results)
    assert "| g > autoregressive, greedy |" in text and "precision [95 %, paired]" in text
    assert "so nothing is tested" in text  # the curves, of one seed each
    # the paper has one figure for both
    assert "| autoregressive, beams > autoregressive, greedy | beams help |  |" in text


def test_charts_are_images(results, tmp_path):
    paths = save_charts(results, tmp_path)
    assert {path.name for path in paths} == {
        "curves.png",
        "table1.png",
        "sweeps.png",
        "infilling.png",
        "trainings.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
