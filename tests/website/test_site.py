"""The site: builds strictly, from what is here, and needs nothing of other hosts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import headless
from experiments.figures import SMALL, WIDTH
from website.formulas import formulas_to_mathml
from website.markdown import outside_code
from website.repository import linked_files, repository_files, site_links

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site):
    return {page.relative_to(site).as_posix(): page.read_text() for page in site.rglob("*.html")}


@pytest.mark.slow
def test_every_page_of_the_docs_is_a_page_of_the_site(site):
    for page in (ROOT / "docs").rglob("*.md"):
        inside = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert (site / ("index.html" if inside == "index" else f"{inside}/index.html")).is_file(), inside


@pytest.mark.slow
def test_nothing_is_loaded_from_another_host(site):
    for name, page in pages(site).items():
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page)
        loaded = [
            tag for tag in tags if re.search(r'(?:src|href)="(?:https?:)?//', tag) and "canonical" not in tag
        ]
        assert not loaded, f"{name}: {loaded[:3]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", style.read_text()), style.name


@pytest.mark.slow
def test_every_image_of_a_page_is_there(site):
    shown = 0
    for name, page in pages(site).items():
        for source in re.findall(r'<img\b[^>]*\bsrc="([^"]+)"', page):
            if not source.startswith("data:"):
                assert ((site / name).parent / source).is_file(), f"{name} shows {source}"
                shown += 1
    assert shown > 10


@pytest.mark.slow
def test_the_home_page_claims_no_more_than_the_readme(site):
    home = (site / "index.html").read_text()
    assert "in full" not in home and "results on COCO have not" in home


@pytest.mark.slow
def test_on_a_phone_what_is_wide_scrolls_and_says_so(site):
    pytest.importorskip("playwright")
    if headless.CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with headless.static_host(site) as address, headless.chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page.set_default_timeout(120_000)
        page.goto(address + "results/")
        page.locator(".scroll-hint:visible").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        chart = page.locator("img[src*=results_curves]")
        width = chart.evaluate("one => one.getBoundingClientRect().width")
        assert SMALL * width / (72 * WIDTH) >= 10  # pixels, of the smallest letters
        assert "invert" in chart.evaluate(
            "one => getComputedStyle(one).filter"
        )  # no white box on a dark page
        for box in (chart.locator(".."), page.locator(".md-typeset__scrollwrap").first):
            assert box.get_attribute("tabindex") == "0"  # the keyboard scrolls it, too
        page.set_viewport_size({"width": 1280, "height": 900})
        page.wait_for_function(
            "!document.querySelector('p:has(> img[src*=curves])').hasAttribute('tabindex')"
        )


@pytest.mark.slow
def test_the_search_knows_the_words_of_the_pages(site):
    index = (site / "search" / "search_index.json").read_text()
    for word in ("best-first", "gradient_checkpointing", "--min-sure", "caption_each"):
        assert word in index, word


@pytest.mark.slow
def test_the_reference_is_filled_in(site):
    python = (site / "reference" / "python" / "index.html").read_text()
    for name in (
        "from_pretrained",
        "caption_each",
        "rewrite",
        "infill",
        "score",
        "doubtful",
        "MissingExtraError",
    ):
        assert f">{name}<" in python or f".{name}" in python, name
    assert "generated:" not in (site / "reference" / "settings" / "index.html").read_text()


@pytest.mark.slow
def test_links_out_of_the_docs_lead_to_copies_of_the_files(site):
    linked = [
        file
        for page in (ROOT / "docs").rglob("*.md")
        for file in linked_files(page)
        if (ROOT / "docs") not in file.parents
    ]
    assert len(linked) > 8
    copies = repository_files(ROOT)
    assert "repository/src/ddcap/pretrained/default/README.md" in copies
    assert "repository/src/ddcap/decoding/schedulers/best_first.py.md" in copies
    text = (site / "repository/src/ddcap/decoding/schedulers/best_first.py/index.html").read_text()
    assert "BestFirstScheduler" in text


def test_links_are_led_from_where_a_page_is_to_where_its_target_is():
    line = "[a](../src/ddcap/settings.py) [b](training.md#coco) `[c](../nothing)` [d](https://example.org)"
    assert site_links(line, "finetune.md", ROOT) == (
        "[a](repository/src/ddcap/settings.py.md) [b](training.md#coco) `[c](../nothing)` [d](https://example.org)"
    )
    back = "[x](../../../../docs/concepts.md)"
    page = "repository/src/ddcap/pretrained/default/README.md"
    assert site_links(back, page, ROOT) == "[x](../../../../../concepts.md)"
    with pytest.raises(FileNotFoundError, match=r"finetune.md links to \.\./nothing"):
        site_links("[a](../nothing)", "finetune.md", ROOT)


def test_formulas_become_mathml_and_code_stays():
    text = "with $x_0$ and `$x_0$`\n\n```sh\necho $HOME $PATH\n```\n\n$$ a = b \\tag{7} $$\n"
    made = formulas_to_mathml(text)
    assert made.count("<math") == 2
    assert "`$x_0$`" in made and "echo $HOME $PATH" in made
    assert outside_code("a `b` c", str.upper) == "A `b` C"


def test_the_extra_docs_is_enough_to_build_the_site():
    """Neither PyTorch nor matplotlib is imported on the way."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'matplotlib', 'transformers', 'fastapi']))\n"
        "from website import hooks; from website.reference import commands_page, settings_page\n"
        "assert len(commands_page()) > 10_000 and len(settings_page()) > 10_000"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_broken_link_or_anchor_fails_the_build(tmp_path):
    for name in ("mkdocs.yml", "website", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "site.css", docs)
    (docs / "index.md").write_text("# Home\n\n[a](#nowhere) [b](index.md#nor-here)\n")
    configuration = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").unlink()
    (tmp_path / "mkdocs.yml").write_text(configuration)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nor-here" in done.stderr and "nowhere" in done.stderr
