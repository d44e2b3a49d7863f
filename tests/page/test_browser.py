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

from axe_playwright_python import sync_playwright as axe
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
SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


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


@pytest.fixture
def opened(browser):
    """Opens a page that may ask its own service only, and write no error."""
    contexts, complaints = [], []

    def open_page(service, size="desk", colours="light", motion="reduce", allowed=()):
        context = browser.new_context(viewport=SIZES[size], color_scheme=colours, reduced_motion=motion)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        own = (service.address, "data:", "blob:")
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
    assert complaints == []


def upload(page, *files):
    page.set_input_files("#picture input[type=file]", *files)


def caption_of(page, after=None):
    """The caption as the page writes it, once there is one other than `after`."""
    text = page.locator("#caption .state")
    sync_api.expect(text).to_contain_text("Caption: ")
    if after is not None:
        sync_api.expect(text).not_to_contain_text(after)
    sync_api.expect(page.locator("#caption .busy")).to_have_count(0)
    return text.text_content().removeprefix("Caption: ").partition(".")[0]


def words_of(page):
    return page.locator("#caption .word .text").all_text_contents()


def captioned(page):
    upload(page, PHOTO)
    return caption_of(page)


def test_a_dropped_picture_gets_the_caption_that_python_gives(service, default, opened):
    page = opened(service, motion="no-preference")
    with PHOTO.open("rb") as file:  # dropped as from a folder
        content = list(file.read())
    data = page.evaluate_handle(
        """content => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], "cat.jpg", {type: "image/jpeg"}));
            return data;
        }""",
        content,
    )
    page.wait_for_selector("#picture .drop")
    page.dispatch_event("#picture .drop", "drop", {"dataTransfer": data})
    (expected,) = default(PHOTO)
    assert caption_of(page) == expected.text
    first = page.locator("#caption .word[aria-label='not yet']")
    seen = {first.count()}  # its words appear one after another
    while first.count():
        seen.add(first.count())
    assert len(seen) > 3 and max(seen) > 5
    assert words_of(page) == expected.text.split()
    doubtful = page.locator("#caption .word.doubtful")
    assert tuple(doubtful.locator(".text").all_text_contents()) == expected.doubtful != ()
    assert "doubtful" in doubtful.first.get_attribute("aria-label")
    mark = doubtful.first.evaluate("one => getComputedStyle(one, '::after').content")
    assert mark == '"?"'  # not by colour alone


def test_the_slider_goes_through_the_steps(service, default, opened):
    page = opened(service)
    captioned(page)
    (expected,) = default(PHOTO)
    slider = page.get_by_role("slider", name="Step", exact=False).first
    slider.focus()
    for step in range(len(expected.trace.frames), -1, -1):
        frame = expected.trace.frames[step - 1] if step else ()
        words = [piece.strip() for piece in frame if piece.strip() not in ("", "▁")]
        assert [text for text in words_of(page) if text != "·"] == words
        assert f"step {step} of {len(expected.trace.frames)}" in slider.get_attribute("aria-valuetext")
        page.keyboard.press("ArrowLeft")


def test_words_are_blanked_and_filled_again_by_keys(service, default, opened):
    page = opened(service)
    before = captioned(page)
    words = before.split()
    page.locator("#caption .word").first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    blank = page.locator("#caption .word").nth(4)
    sync_api.expect(blank).to_have_attribute("aria-pressed", "true")
    assert words_of(page)[4] == "___" and words[4] in blank.get_attribute("aria-label")
    template = " ".join([*words[:4], "___", *words[5:]])
    page.get_by_role("button", name="Fill with other words").focus()
    page.keyboard.press("Enter")
    expected = default.infill(PHOTO, template, ban=[words[4]], steps=10, guidance=1.0).text
    assert caption_of(page, after=before) == expected != before
    sync_api.expect(page.locator("#caption .word").nth(4)).to_be_focused()
    given = page.locator("#caption .word.given .text").all_text_contents()
    assert given == [*words[:4], *words[5:]]


def test_a_word_is_blanked_and_filled_again_by_the_mouse(service, default, opened):
    page = opened(service, "phone")
    before = captioned(page)
    words = before.split()
    page.locator("#caption .word").last.click()
    page.get_by_role("button", name="Fill again").click()
    expected = default.infill(PHOTO, " ".join([*words[:-1], "___"]), steps=10, guidance=1.0).text
    sync_api.expect(page.locator("#caption .word.given")).to_have_count(len(words) - 1)
    assert caption_of(page) == expected


def test_sentences_with_blanks(service, default, opened):
    page = opened(service)
    before = captioned(page)
    page.get_by_label("A sentence with blanks").fill("a ___ on a [2]")
    page.get_by_role("button", name="Fill the blanks").click()
    expected = default.infill(PHOTO, "a ___ on a [2]", steps=10, guidance=1.0).text
    assert caption_of(page, after=before) == expected
    page.get_by_label("A sentence with blanks").fill("a cat")
    page.get_by_label("A sentence with blanks").press("Enter")
    sync_api.expect(page.locator("#caption [role=alert]")).to_contain_text("has no blank")
    assert words_of(page) == expected.split()  # what there was stays


def test_words_that_people_insist_on(service, default, opened):
    page = opened(service)
    before = captioned(page)
    page.get_by_label("Include these words").fill("red ball")
    page.get_by_label("Ban these words").fill("couch, gray")
    page.get_by_role("button", name="Caption the picture").click()
    wished = {"include": ["red ball"], "ban": ["couch", "gray"]}
    expected = default(PHOTO, **wished, steps=10, guidance=1.0)[0].text
    assert caption_of(page, after=before) == expected and "red ball" in expected
    page.get_by_label("Ban these words").fill("ball")
    page.get_by_role("button", name="Caption the picture").click()
    sync_api.expect(page.locator("#caption [role=alert]")).to_contain_text("banned")


def test_dials(service, default, opened):
    page = opened(service)
    before = captioned(page)
    for name, value in (("Length", 8), ("Steps", 4), ("Captions", 3)):
        page.get_by_role("spinbutton", name=name, exact=False).fill(str(value))
        page.keyboard.press("Tab")
    page.get_by_role("button", name="Caption the picture").click()
    caption_of(page, after=before)
    (result,) = default.caption_each([PHOTO], num=3, length=8, steps=4, guidance=1.0)
    listed = page.locator("#caption ol button")
    assert listed.all_text_contents() == [caption.text for caption in result.captions]
    assert page.locator("#caption .of").text_content().endswith("of 4")
    listed.nth(1).click()
    assert words_of(page) == result.captions[1].text.split()
    sync_api.expect(listed.nth(1)).to_have_attribute("aria-pressed", "true")


def test_what_goes_wrong_is_one_line(default, opened, tmp_path):
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "large.jpg").write_bytes(PHOTO.read_bytes() + bytes(100_000))
    limits, settings = ServeLimits(bytes=100_000), EngineSettings(together=1, queue=0)
    with PagedService(default, limits, settings) as service:
        page = opened(service)
        line = page.locator("#caption [role=alert]")
        page.get_by_role("button", name="Caption the picture").click()
        sync_api.expect(line).to_contain_text("there is no image yet")
        upload(page, tmp_path / "notes.jpg")
        sync_api.expect(line).to_contain_text("the picture")
        assert page.locator("#picture .name").text_content() == "notes.jpg"
        upload(page, tmp_path / "large.jpg")
        sync_api.expect(page.locator("#picture [role=alert]")).to_contain_text("at most 0.1 MB")
        may_go = threading.Event()
        engine = service.app.state.engine
        held = threading.Thread(target=lambda: asyncio.run(engine.run(lambda _: may_go.wait(30))))
        held.start()
        while not engine.inside:
            pass
        upload(page, PHOTO)
        sync_api.expect(line).to_contain_text("too many requests are waiting; try again in")
        may_go.set()
        held.join()
        page.get_by_role("button", name="Caption the picture").click()
        assert caption_of(page) == default(PHOTO)[0].text
        sync_api.expect(line).to_have_text("")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everybody_can_use_it(service, opened, size, colours):
    page = opened(service, size, colours)
    page.wait_for_selector("#caption .empty")
    check(page)
    upload(page, PHOTO)
    caption_of(page)
    page.locator("#caption .word").first.click()
    page.get_by_role("spinbutton", name="Captions", exact=False).fill("2")
    check(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]  # no way sideways
    small = page.evaluate(
        """() => [...document.querySelectorAll("#caption button")].filter(one => one.offsetParent)
            .map(one => one.getBoundingClientRect())
            .filter(box => box.height < 24 || box.width < 24).length"""
    )
    assert small == 0


def check(page):
    """Nothing that axe calls serious or critical."""
    found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_a_key_is_asked_for(default, opened):
    with PagedService(default, ServeLimits(keys=("open sesame",))) as service:
        page = opened(service, allowed=["401 (Unauthorized)"])
        check(page)
        page.get_by_label("Key").fill("wrong")
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_role("alert")).to_have_text("Unknown key. Try again.")
        page.get_by_label("Key").fill("open sesame")
        page.keyboard.press("Enter")
        assert captioned(page) == default(PHOTO)[0].text
