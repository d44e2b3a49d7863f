"""The page in a real Chromium, without a window: what people click and press, and what they then see.

The environment that has Gradio has no PyTorch, hence no shared fixtures: see CONTRIBUTING.md.
"""

import asyncio
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the page needs the extra [web]")
pytest.importorskip("playwright", reason="the tests of the page need the extra [dev-web]")
pytest.importorskip("axe_playwright_python", reason="the tests of the page need the extra [dev-web]")

import both_pages
from playwright import sync_api

from benchmarks.headless import CHROMIUM, PagedService, chromium
from ddcap import Captioner
from ddcap.serve.engine import EngineSettings
from ddcap.serve.limits import ServeLimits

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of pandas, in Gradio
]
PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
PATIENCE = 60_000  # milliseconds; of machines that are busy with other things


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


@pytest.fixture(scope="module")
def service(default):
    with PagedService(default) as service:
        yield service


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser):
    """Opens a page, a phone's, that may ask its own service only, and write no error."""
    contexts, complaints = [], []
    sync_api.expect.set_options(timeout=PATIENCE)

    def open_page(service, motion="reduce", allowed=()):
        context = browser.new_context(
            viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, reduced_motion=motion
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        own = (service.address, "data:", f"blob:{service.address}")
        page.on("request", lambda one: one.url.startswith(own) or complaints.append(one.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def heard(message):
            if message.type == "error" and not any(text in message.text for text in allowed):
                complaints.append(message.text)

        page.on("console", heard)
        page.goto(service.address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    sync_api.expect.set_options(timeout=5_000)
    assert complaints == []


@pytest.fixture(scope="module")
def page(opened, service):
    page = opened(service)
    page.wait_for_selector("[data-sample] img")
    return page


@pytest.mark.parametrize("behaviour", both_pages.BEHAVIOURS, ids=lambda one: one.__name__)
def test_behaviour_shared_with_the_static_page(page, behaviour):
    behaviour(page)


def test_steps_and_sentences_equal_pythons(page, default):
    both_pages.the_slider_goes_through_the_steps(page, default(both_pages.HORSES)[0])
    filled = both_pages.sentences_with_blanks(page)
    assert filled == default.infill(both_pages.COFFEE, "a ___ on a [2]").text


def test_a_dropped_image_gets_the_caption_that_python_gives(service, default, opened):
    page = opened(service, motion="no-preference")
    page.wait_for_selector("[data-sample] img")
    both_pages.drop(page, PHOTO)
    (expected,) = default(PHOTO)
    first = page.locator(".word.blank")
    first.first.wait_for()
    seen = {first.count()}  # its words appear one after another
    while first.count():
        seen.add(first.count())
        assert page.text_content(".verdict").strip() == "" or first.count() == 0
    assert len(seen) > 3 and max(seen) > 5
    assert both_pages.words(page) == expected.text.split()
    doubtful = page.locator(".word.doubtful")
    assert tuple(doubtful.locator(".text").all_text_contents()) == expected.doubtful != ()
    assert "under 30 % of annotators would use this word" in doubtful.first.get_attribute("aria-label")
    mark = doubtful.first.evaluate("one => getComputedStyle(one, '::after').content")
    assert mark == '"?"'  # not by colour alone


def test_required_words_are_in_the_caption(page, default):
    both_pages.choose(page, PHOTO)
    form = both_pages.options(page).locator(".wishes")
    form.locator("[name=include]").fill("red ball")
    form.locator("[name=ban]").fill("couch, gray")
    form.locator("[name=ban]").press("Enter")
    wished = {"include": ["red ball"], "ban": ["couch", "gray"]}
    expected = default(PHOTO, **wished)[0].text
    sync_api.expect(page.locator(".spoken")).to_contain_text(f"Caption: {expected}.")
    assert "red ball" in expected
    form.locator("[name=ban]").fill("ball")
    form.locator("[name=ban]").press("Enter")
    sync_api.expect(page.locator(".problem")).to_contain_text("banned")
    for name in ("include", "ban"):
        form.locator(f"[name={name}]").fill("")
    form.locator("[name=ban]").press("Enter")
    both_pages.shown(page)


def test_options_reach_the_captioner(page, default):
    both_pages.choose(page, PHOTO)
    for name, value in (("length", "8"), ("steps", "4"), ("num", "3")):
        both_pages.select(page, name, value)
    (result,) = default.caption_each([PHOTO], num=3, length=8, steps=4)
    listed = page.locator(".drafts li button")
    assert listed.all_text_contents() == [caption.text for caption in result.captions]
    for name in ("length", "steps", "num"):
        both_pages.select(page, name, "")


def test_errors_are_one_line(default, opened, tmp_path):
    (tmp_path / "large.jpg").write_bytes(PHOTO.read_bytes() + bytes(100_000))
    limits, settings = ServeLimits(bytes=100_000), EngineSettings(together=1, queue=0)
    with PagedService(default, limits, settings) as service:
        page = opened(service)
        line = page.locator(".problem")
        form = both_pages.options(page).locator(".sentence")
        form.locator("input").fill("a ___")
        form.locator("button").click()
        sync_api.expect(line).to_contain_text("There is no image yet")
        page.set_input_files(".file >> nth=0", tmp_path / "large.jpg")
        sync_api.expect(line).to_contain_text("at most 0.1 MB")
        may_go = threading.Event()
        engine = service.app.state.engine
        held = threading.Thread(target=lambda: asyncio.run(engine.run(lambda _: may_go.wait(30))))
        held.start()
        while not engine.inside:
            pass
        page.set_input_files(".file >> nth=0", PHOTO)
        sync_api.expect(line).to_contain_text("Too many requests are waiting; try again in")
        sync_api.expect(page.locator(".photo")).to_be_visible()  # it is not the image's fault
        may_go.set()
        held.join()
        assert both_pages.choose(page, PHOTO) == default(PHOTO)[0].text
        sync_api.expect(line).to_have_text("")


def test_a_key_is_asked_for(default, opened):
    with PagedService(default, ServeLimits(keys=("open sesame",))) as service:
        page = opened(service, allowed=["401 (Unauthorized)"])
        page.get_by_label("Key").fill("wrong")
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_role("alert")).to_have_text("Unknown key. Try again.")
        page.get_by_label("Key").fill("open sesame")
        page.keyboard.press("Enter")
        assert both_pages.choose(page, PHOTO) == default(PHOTO)[0].text
