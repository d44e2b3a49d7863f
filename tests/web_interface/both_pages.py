"""What people do on either page, and what they then see; the tests of both pages run it on theirs.

Each function takes a page that is open, whatever was done on it before.
"""

import base64
import re
from pathlib import Path

from playwright import sync_api

EXAMPLES = Path(__file__).parents[2] / "examples"
CAT, COFFEE, HORSES = (
    EXAMPLES / name for name in ("photos/chelsea.jpg", "photos/coffee.jpg", "animals/horses.jpg")
)
ACCEPTED = re.compile(r"\d+ % chance to score above the median human caption \(CIDEr\)")
GUESS = "Only a guess: the model has not seen images like this"

# drops a file, and tells what there is to see in the same moment
DROP = """([content, name]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const root = document.querySelector(".ddcap");
  root.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data }));
  const text = (selector) => root.querySelector(selector).textContent;
  return {
    state: root.dataset.state, verdict: text(".verdict"), spoken: text(".spoken"), empty: text(".empty"),
    words: root.querySelectorAll(".word").length, isHidden: root.querySelector(".result").hidden,
  };
}"""


def choose(page, image):
    """Give it an image; the caption that comes of it."""
    page.set_input_files(".file >> nth=0", image)
    return shown(page)


def shown(page):
    """The caption, once it is there."""
    sync_api.expect(page.locator(".ddcap")).to_have_attribute("data-state", "shown")
    return caption(page)


def caption(page):
    return page.evaluate("document.querySelector('.spoken').textContent.match(/^Caption: (.*?)\\./)[1]")


def words(page):
    return page.locator(".word .text").all_text_contents()


def drop(page, image, name="image.jpg"):
    return page.evaluate(DROP, [base64.b64encode(image.read_bytes()).decode(), name])


def set_step(page, step):
    page.fill(".replay input", str(step))


def last_step(page):
    return int(page.get_attribute(".replay input", "max"))


def options(page):
    """The options, opened."""
    box = page.locator("details.options")
    if box.get_attribute("open") is None:
        box.locator("summary").click()
    return box


def nothing_of_the_last_image_stays(page):
    choose(page, CAT)
    assert page.text_content(".verdict") == GUESS
    at_once = drop(page, COFFEE)
    assert at_once["state"] == "waiting" and at_once["isHidden"]
    assert (at_once["verdict"], at_once["spoken"], at_once["words"]) == ("", "", 0)
    assert at_once["empty"] == "Captioning the image …"
    shown(page)
    assert ACCEPTED.fullmatch(page.text_content(".verdict"))


def an_unreadable_file_leaves_nothing(page):
    choose(page, COFFEE)
    page.set_input_files(
        ".file >> nth=0", {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"Dear Sir or Madam"}
    )
    sync_api.expect(page.locator(".problem")).to_contain_text("This file is not a readable image")
    sync_api.expect(page.locator(".photo")).to_be_hidden()
    sync_api.expect(page.locator(".file-name")).to_be_hidden()
    sync_api.expect(page.locator(".result")).to_be_hidden()
    sync_api.expect(page.locator(".empty")).to_be_visible()
    assert page.locator(".word").count() == 0 and page.text_content(".verdict") == ""
    choose(page, COFFEE)
    assert page.text_content(".problem") == ""


def the_verdict_stands_at_the_caption(page):
    choose(page, CAT)
    verdict, first_word = page.locator(".verdict"), page.locator(".word").first
    sync_api.expect(verdict).to_have_text(GUESS)
    size = "one => parseFloat(getComputedStyle(one).fontSize)"
    assert verdict.evaluate(size) > page.locator(".hint").first.evaluate(size)
    below = verdict.bounding_box()["y"] - page.locator(".word").last.bounding_box()["y"]
    assert 0 < below < 2.5 * first_word.bounding_box()["height"]


def the_verdict_comes_with_the_last_word(page):
    choose(page, COFFEE)
    for step in (0, last_step(page) - 1):
        set_step(page, step)
        assert page.text_content(".verdict").strip() == ""
    assert page.locator(".word.blank").count() > 0
    set_step(page, last_step(page))
    assert ACCEPTED.fullmatch(page.text_content(".verdict"))


def the_slider_goes_through_the_steps(page, expected):
    """By keys; `expected` is Python's caption of the image of horses."""
    assert choose(page, HORSES) == expected.text
    slider = page.locator(".replay input")
    slider.focus()
    for step in range(len(expected.trace.frames), -1, -1):
        frame = expected.trace.frames[step - 1] if step else ()
        there = [piece.strip() for piece in frame if piece.strip() not in ("", "▁")]
        assert [text for text in words(page) if text != "·"] == there
        assert f"step {step} of {len(expected.trace.frames)}" in slider.get_attribute("aria-valuetext")
        page.keyboard.press("ArrowLeft")


def more_steps_than_were_set_are_explained(page):
    choose(page, COFFEE)
    select(page, "steps", "2")
    assert last_step(page) > 2
    assert "2 steps were set;" in page.text_content(".what")
    select(page, "steps", "")
    assert page.locator("select[name=steps] option").first.text_content() == "automatic"


def select(page, name, value):
    options(page).locator(f"select[name={name}]").select_option(value)
    shown(page)


def a_refilled_word_is_another_one(page):
    """However often; the verdict and the captions before stay to be had."""
    first = choose(page, COFFEE)
    count = page.locator(".drafts li").count()
    found, tried = [first], []
    for _ in range(3):
        tried.append(words(page)[5])
        page.locator(".word").nth(5).click()
        page.locator(".refill").click()
        found.append(shown(page))
        assert words(page)[5] not in tried
        assert page.locator(".word").nth(5).evaluate("one => one === document.activeElement")
    assert len(set(found)) == 4
    listed = page.locator(".drafts li button").all_text_contents()
    assert set(found) <= set(listed) and len(listed) >= count + 3
    notes = page.locator(".word .note").all_text_contents()
    assert "given" not in notes and all("%" in note for note in notes)
    assert ACCEPTED.fullmatch(page.text_content(".verdict"))


def a_word_is_taken_or_typed(page):
    before = choose(page, COFFEE)
    page.locator(".word").nth(3).click()
    others = page.locator(".others button")
    sync_api.expect(others.first).to_be_visible()
    offered = [re.fullmatch(r"(\D+?)(?:under |over )?(\d+) %", text) for text in others.all_text_contents()]
    assert len(offered) > 1 and words(page)[3] not in [one[1] for one in offered]
    chances = [int(one[2]) for one in offered]
    assert chances == sorted(chances, reverse=True) and sum(chances) <= 104  # they are rounded
    taken = others.first.evaluate("one => one.firstChild.textContent")
    others.first.click()
    assert words(page)[3] == taken and caption(page) == " ".join(words(page)) != before
    assert "Changed by you" in page.text_content(".verdict")
    assert "chosen by you" in page.locator(".word").nth(3).get_attribute("aria-label")
    page.keyboard.press("Enter")  # the word has the focus: its panel opens again
    page.locator(".own input").fill("espresso")
    page.keyboard.press("Enter")
    assert words(page)[3] == "espresso" and page.locator(".word .note").nth(3).text_content() == "yours"
    page.locator(".word").nth(1).click()  # the model goes on with the typed word
    page.locator(".refill").click()
    assert "espresso" in shown(page)
    page.locator(".drafts li button", has_text=re.compile(f"^{before}$")).click()
    assert " ".join(words(page)) == before and ACCEPTED.fullmatch(page.text_content(".verdict"))


def words_are_reached_by_keys(page):
    choose(page, COFFEE)
    page.locator(".word").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    word = page.locator(".word").nth(2)
    sync_api.expect(word).to_have_attribute("aria-expanded", "true")
    sync_api.expect(page.locator(".panel")).to_be_visible()
    page.locator(".own input").focus()
    page.keyboard.press("Escape")
    sync_api.expect(page.locator(".panel")).to_be_hidden()
    sync_api.expect(word).to_be_focused()


def a_draft_is_taken(page):
    first = choose(page, COFFEE)
    drafts = page.locator(".drafts li button")
    assert drafts.count() == 4 and drafts.first.text_content() == first
    drafts.nth(1).click()
    assert " ".join(words(page)) == drafts.nth(1).text_content() != first
    sync_api.expect(drafts.nth(1)).to_have_attribute("aria-pressed", "true")
    assert ACCEPTED.fullmatch(page.text_content(".verdict"))


def sentences_with_blanks(page):
    """What the default model fills in, to be compared with Python's."""
    choose(page, COFFEE)
    form = options(page).locator(".sentence")
    hint = form.locator(".hint code").first
    assert hint.text_content() == "___" and hint.is_visible()
    form.locator("input").fill("a ___ on a [2]")
    form.locator("button").click()
    filled = shown(page)
    assert page.locator(".word.given").count() == 3
    form.locator("input").fill("a cup")
    form.locator("input").press("Enter")
    sync_api.expect(page.locator(".problem")).to_contain_text("has no blank")
    assert " ".join(words(page)) == filled  # what there was stays
    return filled


def the_samples_are_captioned(page):
    found = set()
    for sample in page.locator("[data-sample]").all():
        page.wait_for_function("document.querySelector('[data-sample] img').complete")
        sample.click()
        sync_api.expect(page.locator(".ddcap")).to_have_attribute("data-state", "waiting")
        found.add(shown(page))
    assert len(found) == 3


def the_caption_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text = choose(page, COFFEE)
    page.locator(".copy").click()
    sync_api.expect(page.locator(".copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text


def a_phone_shows_image_and_caption_first(page):
    """At 390 x 844 pixels; everything can be touched."""
    choose(page, COFFEE)
    if page.locator("details.options").get_attribute("open") is not None:  # opened by somebody before
        page.locator("details.options summary").click()
    page.evaluate("scrollTo(0, 0)")
    screen = page.viewport_size["height"]
    for part in (page.locator(".photo"), page.locator(".word").last, page.locator(".verdict")):
        box = part.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= screen, part
    page.locator(".word").nth(3).tap()
    sync_api.expect(page.locator(".others button").first).to_be_visible()
    options(page)
    small = page.evaluate(
        """() => [...document.querySelectorAll(".ddcap :is(button, select, summary, input[type=text])")]
            .filter((one) => one.offsetParent).map((one) => [one.className, one.getBoundingClientRect()])
            .filter(([, box]) => box.height < 40 || box.width < 40).map(([name]) => name)"""
    )
    assert small == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def serious(page):
    """What axe calls serious or critical, light and dark, which do look different."""
    from axe_playwright_python.sync_playwright import Axe

    found, grounds = [], set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        grounds.add(page.evaluate("getComputedStyle(document.querySelector('.ddcap')).color"))
        found += Axe().run(page).response["violations"]
    assert len(grounds) == 2
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


def everybody_can_use_it(page):
    assert serious(page) == []
    choose(page, COFFEE)
    page.locator(".word").nth(3).click()
    sync_api.expect(page.locator(".others button").first).to_be_visible()
    options(page)
    assert serious(page) == []


BEHAVIOURS = [
    everybody_can_use_it,
    nothing_of_the_last_image_stays,
    an_unreadable_file_leaves_nothing,
    the_verdict_stands_at_the_caption,
    the_verdict_comes_with_the_last_word,
    more_steps_than_were_set_are_explained,
    a_refilled_word_is_another_one,
    a_word_is_taken_or_typed,
    words_are_reached_by_keys,
    a_draft_is_taken,
    the_samples_are_captioned,
    the_caption_is_copied,
    a_phone_shows_image_and_caption_first,
]
