"""The page in a real browser: the same captions as Python, no server, no other host."""

import base64
import re
from pathlib import Path

import pytest
from PIL import Image

from ddcap import Captioner
from ddcap.commands import main

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.jpg"))
READY = "body[data-state=ready]"
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
    worker.onmessage = ({ data }) => ["caption", "error"].includes(data.kind) && resolve(data);
    worker.postMessage({ number: 1, wish: {}, ...request });
  });
}"""
CAPTION = """async ([bytes, wish]) => {
  const file = bytes && new Blob([Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0))]);
  return self.ask(file ? { kind: "picture", file, wish } : { kind: "again", wish });
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


def asked(page, picture=None, **wish):
    bytes_ = None if picture is None else base64.b64encode(Path(picture).read_bytes()).decode()
    found = page.evaluate(CAPTION, [bytes_, wish])
    assert found["kind"] == "caption", found
    return found


def choose(page, picture):
    page.set_input_files("#file", picture)
    page.wait_for_selector(READY)
    return page.text_content("#spoken")


def test_the_same_captions_as_python(program, captioner):
    different = []
    for picture in EXAMPLES:
        ours, theirs = asked(program, picture), captioner(picture)[0]
        if ours["text"] != theirs.text:
            different.append((picture.name, ours["text"], theirs.text))
            continue
        assert ours["doubtful"] == list(theirs.doubtful)
        for name in ("sure", "faithful", "known"):
            assert ours[name] == pytest.approx(getattr(theirs, name), abs=0.01), picture
    assert len(EXAMPLES) > 25 and different == []


def test_the_same_with_every_wish(program, captioner):
    for picture in EXAMPLES[::15]:
        best = asked(program, picture)
        for wish in (
            {"preset": "fast"},
            {"length": 8},
            {"length": 15, "preset": "fast"},
            {"ban": ["dog", "a woman", "White", "in"]},
            {"ban": ["a"], "length": 7},
        ):
            assert asked(program, **wish)["text"] == captioner(picture, **wish)[0].text, (picture, wish)
        words = best["text"].split()
        for place in (0, len(words) // 2, len(words) - 1):
            ids = [token["token"] for token in best["tokens"]]
            first, last = best["words"][place][0], best["words"][place][-1]
            template = [part for part in (ids[:first], None, ids[last + 1 :]) if part != []]
            filled = program.evaluate("(template) => self.ask({ kind: 'infill', template })", template)
            text = " ".join([*words[:place], "___", *words[place + 1 :]])
            assert filled["text"] == captioner.infill(picture, text).text, (picture, text)


def test_a_model_of_another_kind(context, serve, runtime_folder, tiny_graphs_folder, tmp_path, small_photos):
    """With a CLIP, a length head, guidance, another size, and no concepts."""
    site = tmp_path / "page"
    words = ["export", str(tiny_graphs_folder), str(site), "--web", "--onnxruntime-web", str(runtime_folder)]
    assert main(words) == 0
    captioner = Captioner.from_pretrained(tiny_graphs_folder, precision="float32")
    page = programmed(context, serve(site))
    texts = set()
    for picture in small_photos[:2]:
        png = tmp_path / "picture.png"  # so small a model tells a JPEG from another by one bit
        Image.open(picture).save(png)
        for wish in ({}, {"preset": "fast"}, {"length": 6}, {"ban": ["a", "wall"]}):
            ours = asked(page, None if wish else png, **wish)
            assert ours["text"] == captioner(png, **wish)[0].text
            assert "sure" not in ours and ours.get("seen") is None
            texts.add(ours["text"])
    assert len(texts) > 2


RECORD_LOADING = """
self.loadingTexts = [];
document.addEventListener("DOMContentLoaded", () => {
  const text = document.querySelector("#progress-text");
  new MutationObserver(() => self.loadingTexts.push(text.textContent)).observe(text, { childList: true });
});
"""


def test_what_a_person_does(context, address, captioner):
    sync_api = pytest.importorskip("playwright.sync_api")
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
    page.set_input_files("#file", CHELSEA)  # before the model is there
    page.wait_for_selector(".word")
    page.wait_for_selector(READY)
    loading = [text for text in page.evaluate("self.loadingTexts") if "MB" in text]
    assert loading[-1] == "Loading the model: 44 of 44 MB" and len(set(loading)) > 3
    assert page.evaluate("crossOriginIsolated")
    said = page.text_content("#spoken")
    assert said == captioner(CHELSEA)[0].text
    # the words appear in the order in which they were committed, and the slider goes back
    steps = int(page.get_attribute("#step", "max"))
    sync_api.expect(page.locator("#step-text")).to_have_text(f"step {steps} of {steps}", timeout=PATIENCE)
    assert steps == len(captioner(CHELSEA)[0].trace.frames)
    seen = []
    for step in range(steps + 1):
        page.fill("#step", str(step))
        seen.append(page.locator(".word:not(.blank)").count())
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] == len(said.split())
    assert page.locator("#drafts li").count() == 5
    # a word is blanked and filled again
    page.get_by_role("button", name="couch").click()
    page.wait_for_selector(READY)
    template = re.sub("couch$", "___", said)
    assert page.text_content("#spoken") == captioner.infill(CHELSEA, template).text
    # wishes
    page.check("input[value=fast]", force=True)
    page.wait_for_selector(READY)
    assert page.text_content("#spoken") == captioner(CHELSEA, preset="fast")[0].text
    page.select_option("#length", "8")
    page.wait_for_selector(READY)
    assert page.text_content("#spoken") == captioner(CHELSEA, preset="fast", length=8)[0].text
    page.fill("#ban", "cat, couch")
    page.press("#ban", "Tab")
    page.wait_for_selector(READY)
    wanted = captioner(CHELSEA, preset="fast", length=8, ban=["cat", "couch"])[0].text
    assert page.text_content("#spoken") == wanted
    page.fill("#ban", "cat, !")
    page.press("#ban", "Tab")
    page.wait_for_selector("#problem:not([hidden])")
    assert "no letter or digit" in page.text_content("#problem")
    assert all(url.startswith((address, f"blob:{address}")) for url in requests)
    assert complaints == []


def test_it_works_without_a_network(context, site, serve, captioner):
    page = context.new_page()
    page.goto(serve(site))
    page.wait_for_selector(READY)
    context.set_offline(True)
    page.reload()
    page.wait_for_selector(READY)
    assert choose(page, CHELSEA) == captioner(CHELSEA)[0].text


def test_pictures_of_all_kinds(program, captioner, tmp_path):
    """Turned by Exif, with a colour profile, grey, transparent, large; and files that are no pictures."""
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
    image.save(tmp_path / "picture.webp", lossless=True)
    for picture in sorted(tmp_path.iterdir()):
        assert asked(page, picture)["text"] == captioner(picture)[0].text, picture.name
    for name, content, words in (
        ("letter.jpg", b"Dear Sir or Madam", "cannot read the file"),
        ("cut.jpg", b"\xff\xd8\xff\xe0", "cannot read the file"),
    ):
        (tmp_path / name).write_bytes(content)
        found = page.evaluate(CAPTION, [base64.b64encode(content).decode(), {}])
        assert found["kind"] == "error" and words in found["message"]
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    found = page.evaluate(CAPTION, [base64.b64encode((tmp_path / "tiny.png").read_bytes()).decode(), {}])
    assert "too small" in found["message"]
    assert asked(page, CHELSEA)["text"] == captioner(CHELSEA)[0].text  # it goes on


def _swapped_profile():
    """A colour profile which turns red to blue where it is followed."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_it_is_accessible_and_fits_a_phone(chromium, address):
    axe_sync = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = chromium.new_context(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
        bypass_csp=True,  # for axe's own script
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(READY)

    def serious():
        """What axe finds in both colour schemes, which do look different."""
        found, grounds = [], set()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            found += axe_sync.Axe().run(page).response["violations"]
        assert len(grounds) == 2
        return [
            (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
        ]

    assert serious() == []
    assert page.locator(".camera").is_visible()
    choose(page, CHELSEA)
    page.locator("summary").click()
    assert serious() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_the_policy_lets_nothing_out(context, address):
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
