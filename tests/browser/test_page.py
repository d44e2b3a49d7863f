"""The page in a real browser: the same captions as Python, no server, no other host."""

import base64
import re
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright")

import both_pages

from ddcap import Captioner
from ddcap.choices import caption_drafts, word_alternatives
from ddcap.commands import main

pytestmark = pytest.mark.slow

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.jpg"))
READY = "body[data-model=ready]"
CHELSEA = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"

# what the page does with its worker, for a program
START_WORKER = """async () => {
  const worker = new Worker("worker.js", { type: "module" });
  const ready = new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => {
      if (data.kind === "ready") resolve();
      if (data.kind === "error") reject(data.message);
    };
  });
  worker.postMessage({ kind: "load" });
  await ready;
  self.ask = (request) => new Promise((resolve) => {
    worker.onmessage = ({ data }) => ["answer", "error"].includes(data.kind) && resolve(data);
    worker.postMessage({ number: 1, ...request });
  });
}"""
ASK = """async ([bytes, request]) => {
  const file = bytes && new Blob([Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0))]);
  return self.ask(file ? { ...request, file } : request);
}"""


@pytest.fixture(scope="module")
def captioner():
    return Captioner.from_pretrained(precision="float32")


@pytest.fixture(scope="module")
def address(site, serve):
    return serve(site)


PATIENCE = 300_000  # milliseconds; of machines that are busy with other things


@pytest.fixture
def context(chromium):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


def programmed(context, address):
    """A page of the site on which nothing runs but its worker, which `asked` talks to."""
    page = context.new_page()
    page.goto(address + "icon.svg")
    page.evaluate(START_WORKER)
    return page


@pytest.fixture(scope="module")
def program(chromium, address):
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE)
    yield programmed(context, address)
    context.close()


@pytest.fixture(scope="module")
def page(chromium, address):
    """The page as people have it, a phone's, without motion; the policy lets axe's own script in."""
    sync_api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("axe_playwright_python")
    sync_api.expect.set_options(timeout=PATIENCE)
    context = chromium.new_context(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
        bypass_csp=True,
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(READY)
    yield page
    context.close()
    sync_api.expect.set_options(timeout=5_000)


def told(page, image=None, kind="caption", **request):
    bytes_ = None if image is None else base64.b64encode(Path(image).read_bytes()).decode()
    return page.evaluate(ASK, [bytes_, {"kind": kind, **request}])


def asked(page, image=None, **request):
    found = told(page, image, **request)
    assert found["kind"] == "answer", found
    return found["captions"][0]


def doubtful(caption):
    words = [word for word in caption["words"] if word["doubtful"]]
    return {"".join(token["piece"] for token in word["tokens"]) for word in words}


def test_captions_equal_pythons(program, captioner):
    different, images = [], EXAMPLES[::3]
    for image in images:
        ours, theirs = asked(program, image), captioner(image)[0]
        if ours["text"] != theirs.text:
            different.append((image.name, ours["text"], theirs.text))
            continue
        assert doubtful(ours) == set(theirs.doubtful)
        for name in ("sure", "faithful", "known"):
            assert ours[name] == pytest.approx(getattr(theirs, name), abs=0.01), image
    assert len(images) > 8 and different == []


def test_captions_with_options_equal_pythons(program, captioner):
    for image in EXAMPLES[::20]:
        best = asked(program, image)
        for wish in (
            {"steps": 4},
            {"length": 8},
            {"length": 15, "steps": 4},
            {"guidance": 1.5},
            {"ban": ["dog", "a woman", "White", "in"]},
            {"ban": ["a"], "length": 7},
        ):
            assert asked(program, **wish)["text"] == captioner(image, **wish)[0].text, (image, wish)
        words = best["text"].split()
        for place in (0, len(words) // 2, len(words) - 1):
            template = " ".join([*words[:place], "___", *words[place + 1 :]])
            ours = asked(program, kind="infill", template=template)
            theirs = captioner.infill(image, template)
            assert ours["text"] == theirs.text, (image, template)
        template = "A ___ beside [2] dog's ball"
        banned = {"ban": ["white", "brown"]}
        ours = asked(program, kind="infill", template=template, **banned)
        assert ours["text"] == captioner.infill(image, template, **banned).text


def test_drafts_and_other_words_are_those_of_python(program, captioner):
    for image in EXAMPLES[::20]:
        found = told(program, image)["captions"]
        assert [one["text"] for one in found] == [one.text for one in caption_drafts(captioner, image)]
        words = found[0]["text"].split()
        for place, wish in ((1, {}), (len(words) - 1, {"ban": ["field", "couch"], "guidance": 1.5})):
            ours = told(program, kind="alternatives", words=words, place=place, **wish)["alternatives"]
            theirs = word_alternatives(captioner, image, words, place, **wish)
            assert [one["word"] for one in ours] == [one.word for one in theirs]
            wanted = [one.probability for one in theirs]
            assert [one["probability"] for one in ours] == pytest.approx(wanted, rel=0.01, abs=1e-5)


def test_impossible_templates_are_refused(program):
    asked(program, CHELSEA)
    for template, reason in (
        ("a cat", "has no blank"),
        ("a [0] cat", "width 0"),
        ("a ___ 猫", "“猫” has letters that the model cannot write"),
        ("a " * 25 + "___", "over 20 tokens"),
    ):
        found = told(program, kind="infill", template=template)
        assert found["kind"] == "error" and reason in found["message"], found
        assert not found["unreadable"]


@pytest.mark.parametrize("settings", [{}, {"focus": 2}])
def test_a_model_of_another_kind(
    context, serve, runtime_folder, tiny_graphs_folder, tmp_path, small_photos, settings
):
    """With a CLIP, a length head, guidance, another size, and no concepts."""
    site = tmp_path / "page"
    words = ["export", str(tiny_graphs_folder), str(site), "--web", "--onnxruntime-web", str(runtime_folder)]
    assert main([*words, *(f"{name}={value}" for name, value in settings.items())]) == 0
    captioner = Captioner.from_pretrained(tiny_graphs_folder, precision="float32")
    page = programmed(context, serve(site))
    texts = set()
    for image in small_photos[:2]:
        png = tmp_path / "image.png"  # so small a model tells a JPEG from another by one bit
        Image.open(image).save(png)
        for wish in ({}, {"steps": 4}, {"length": 6}, {"ban": ["a", "wall"]}):
            ours = asked(page, None if wish else png, **wish)
            assert ours["text"] == captioner(png, **settings, **wish)[0].text
            assert "sure" not in ours
            texts.add(ours["text"])
    assert len(texts) > 2


RECORD_LOADING = """
self.loadingTexts = [];
document.addEventListener("DOMContentLoaded", () => {
  const text = document.querySelector(".loading span");
  new MutationObserver(() => self.loadingTexts.push(text.textContent)).observe(text, { childList: true });
});
"""


def test_a_visit_from_choosing_to_changing_words(context, address, captioner):
    context.add_init_script(RECORD_LOADING)
    requests, complaints = [], []
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.on(
        "console", lambda message: message.type in ("error", "warning") and complaints.append(message.text)
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector(READY)
    page.reload()
    page.set_input_files(".file >> nth=0", CHELSEA)  # before the model is there
    page.wait_for_selector(".word")
    loading = [text for text in page.evaluate("self.loadingTexts") if "MB" in text]
    assert re.fullmatch(r"Loading the model: (\d\d) of \1 MB", loading[-1]) and len(set(loading)) > 3
    assert page.evaluate("crossOriginIsolated")
    assert page.locator(".promise").text_content() == "The image never leaves your device."
    # the words appear one after the other, and the verdict after the last
    page.wait_for_selector(".verdict:not([class='verdict '])")
    assert both_pages.caption(page) == captioner(CHELSEA)[0].text
    # wishes
    both_pages.options(page)
    both_pages.select(page, "length", "8")
    page.wait_for_function(
        "text => [...document.querySelectorAll('.word .text')].map((w) => w.textContent).join(' ') === text",
        arg=captioner(CHELSEA, length=8)[0].text,
    )
    page.fill("[name=ban]", "cat, couch")
    page.press("[name=ban]", "Tab")
    wanted = captioner(CHELSEA, length=8, ban=["cat", "couch"])[0].text
    page.wait_for_function("text => document.querySelector('.spoken').textContent.includes(text)", arg=wanted)
    page.fill("[name=ban]", "cat, !")
    page.press("[name=ban]", "Tab")
    page.wait_for_selector(".problem:not(:empty)")
    assert "no letter or digit" in page.text_content(".problem")
    assert all(url.startswith((address, f"blob:{address}")) for url in requests)
    assert complaints == []


@pytest.mark.parametrize("behaviour", both_pages.BEHAVIOURS, ids=lambda one: one.__name__)
def test_behaviour_shared_with_the_services_page(page, behaviour):
    behaviour(page)


def test_steps_and_sentences_equal_pythons(page, captioner):
    both_pages.the_slider_goes_through_the_steps(page, captioner(both_pages.HORSES)[0])
    filled = both_pages.sentences_with_blanks(page)
    assert filled == captioner.infill(both_pages.COFFEE, "a ___ on a [2]").text


def test_the_page_works_without_a_network(context, site, serve, captioner):
    page = context.new_page()
    page.goto(serve(site))
    page.wait_for_selector(READY)
    context.set_offline(True)
    page.reload()
    page.wait_for_selector(READY)
    page.set_input_files(".file >> nth=0", CHELSEA)
    page.wait_for_selector(".word")
    page.wait_for_selector(".verdict:not([class='verdict '])")
    assert both_pages.caption(page) == captioner(CHELSEA)[0].text


def test_images_of_all_kinds_equal_pythons(program, captioner, tmp_path):
    """Turned by Exif, with a colour profile, grey, transparent, large; and files that are no images."""
    page = program
    image = Image.open(CHELSEA)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "profile.png", icc_profile=_swapped_profile())
    image.convert("L").save(tmp_path / "grey.png")
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    transparent.save(tmp_path / "transparent.png")
    image.resize((4500, 3000)).save(tmp_path / "large.jpg", quality=90)
    image.convert("P").save(tmp_path / "palette.gif")
    image.save(tmp_path / "image.webp", lossless=True)
    for path in sorted(tmp_path.iterdir()):
        assert asked(page, path)["text"] == captioner(path)[0].text, path.name
    for name, content, words in (
        ("letter.jpg", b"Dear Sir or Madam", "this file is not a readable image"),
        ("cut.jpg", b"\xff\xd8\xff\xe0", "this file is not a readable image"),
    ):
        (tmp_path / name).write_bytes(content)
        found = told(page, tmp_path / name)
        assert found["kind"] == "error" and words in found["message"] and found["unreadable"]
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    found = told(page, tmp_path / "tiny.png")
    assert "too small" in found["message"] and found["unreadable"]
    assert asked(page, CHELSEA)["text"] == captioner(CHELSEA)[0].text  # it goes on


def _swapped_profile():
    """A colour profile which turns red to blue where it is followed."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_the_policy_blocks_other_hosts(context, address):
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(READY)
    blocked = page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')")
    refusals = page.evaluate(
        """() => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
          const image = new Image();
          image.src = "http://127.0.0.1:9/pixel.png";
        })"""
    )
    assert (blocked, refusals) == ("blocked", "img-src")
    headers = page.evaluate("async () => [...(await fetch('worker.js')).headers].map(([name]) => name)")
    assert "content-security-policy" in headers and "cross-origin-embedder-policy" in headers
