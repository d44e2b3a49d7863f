"""The page in a headless Chromium: how long it takes, and how many of its captions are Python's.

    ddcap export default site --web
    python benchmarks/browser.py site [--photos FOLDER] [--count 200] [--noise]

Python computes in float32, as the page does. Times are those that the page itself takes, with several
threads and with one; on a busy machine they say little.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from headless import CHROMIUM, chromium, static_host
from playwright.sync_api import Browser, Page

from ddcap import Captioner
from ddcap.data.images import find_images
from ddcap.decoding.generate import CaptionRequest
from ddcap.machine import describe_machine

ROOT = Path(__file__).parents[1]
EXAMPLES = [ROOT / "examples" / name for name in ("photos", "animals", "unseen_animals")]
START = """async () => {
  const worker = new Worker("worker.js", { type: "module" });
  self.take = (kinds) => new Promise((resolve) => {
    worker.onmessage = ({ data }) => kinds.includes(data.kind) && resolve(data);
  });
  self.ask = (request) => { worker.postMessage(request); return self.take(["answer", "error"]); };
  worker.postMessage({ kind: "load" });
  return self.take(["ready", "error"]);
}"""
ASK = """(bytes) => self.ask({ kind: "caption", number: 1,
  file: new Blob([Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0))]) })"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="folder that 'ddcap export --web' wrote")
    parser.add_argument("--photos", type=Path, help="folder (default: the examples)")
    parser.add_argument("--count", type=int, help="of them, drawn with seed 0 (default: all)")
    parser.add_argument("--model", default="default", help="that the page was written of")
    parser.add_argument("--chromium", default=CHROMIUM)
    parser.add_argument(
        "--noise", action="store_true", help="what noise of 1e-6 in the pixels changes, instead"
    )
    options = parser.parse_args()
    photos = find_images([options.photos] if options.photos else list(EXAMPLES))
    if options.count:
        photos = random.Random(0).sample(photos, options.count)
    if options.noise:
        for precision in ("int8", "float32"):
            disturb(Captioner.from_pretrained(options.model, precision=precision), photos)
        return
    with static_host(options.site) as address, chromium(options.chromium) as browser:
        print(describe_machine())
        sizes(options.site)
        compare(browser, address, photos, options.model)


def sizes(site: Path) -> None:
    text = (site / "files.js").read_text()
    found: dict[str, int] = json.loads(text[text.index("{") : text.rindex("}") + 1])["sizes"]
    unread = ("onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt")
    parts = {
        "weights": ("model/model.safetensors",),
        "ONNX Runtime": tuple(
            name for name in found if name.startswith("onnxruntime/") and name not in unread
        ),
        "graphs": tuple(name for name in found if name.endswith(".onnx")),
        "tokens, concepts, settings, confidence": ("model/model.json", "model/confidence.safetensors"),
        "the page": tuple(name for name in found if "/" not in name or name.startswith("interface/")),
    }
    for part, names in parts.items():
        print(f"{sum(found.get(name, 0) for name in names) / 1e6:6.2f} MB  {part}")
    print(f"{sum(size for name, size in found.items() if name not in unread) / 1e6:6.2f} MB  in all")


def programmed(browser: Browser, address: str, *, threads: bool) -> Page:
    """A page that talks to its worker; with threads, once the service worker has isolated it."""
    page = browser.new_context().new_page()
    page.set_default_timeout(600_000)
    if threads:
        page.goto(address)
        page.wait_for_selector("body[data-model=ready]")
    page.goto(address + "icon.svg")
    return page


def compare(browser: Browser, address: str, photos: list[Path], model: str) -> None:
    captioner = Captioner.from_pretrained(model, precision="float32")
    told: dict[str, list[dict[str, Any]]] = {}
    for threads in (True, False):
        page = programmed(browser, address, threads=threads)
        ready = page.evaluate(START)
        many = f"{ready['threads']} thread{'s' if ready['threads'] > 1 else ''}"
        load = {name: f"{time / 1000:.2f} s" for name, time in ready["times"].items()}
        print(f"{many}: {load}")
        some = photos if not told else photos[:10]
        told[many] = [page.evaluate(ASK, base64.b64encode(photo.read_bytes()).decode()) for photo in some]
        for name, pick in (("first caption", slice(0, 1)), ("later ones, median", slice(1, None))):
            times = [sum(one["times"].values()) / 1000 for one in told[many][pick] if "times" in one]
            if times:
                print(f"{many}: {name} {statistics.median(times):.2f} s")
        page.context.close()
    ours = [one["captions"][0]["text"] if "captions" in one else None for one in next(iter(told.values()))]
    theirs = [result.captions[0].text for result in captioner.caption_each(photos)]
    different = [trio for trio in zip(photos, ours, theirs, strict=True) if trio[1] != trio[2]]
    print(f"{len(photos) - len(different)} of {len(photos)} captions are Python's")
    for photo, one, other in different:
        print(f"  {photo.name}: {one!r}, in Python {other!r}")


def disturb(captioner: Captioner, photos: list[Path], rounds: int = 3) -> None:
    """Count the captions that change, in Python, where the pixels do by a millionth."""
    asked, generator = CaptionRequest(captioner.settings()), np.random.default_rng(0)

    def caption(pixels: np.ndarray) -> str:
        features = captioner.model.encode(pixels[None])
        return asked.captions(captioner.model, features, captioner.word_vocabulary, generator)[0][0].text

    changed = 0
    for photo in photos:
        pixels = captioner.pixels(photo)
        own = caption(pixels)
        for _ in range(rounds):
            noise = 1 + 1e-6 * generator.standard_normal(pixels.shape)
            changed += caption((pixels * noise).astype(np.float32)) != own
    print(f"{captioner.precision}: noise of 1e-6 changes {changed} of {rounds * len(photos)} captions")


if __name__ == "__main__":
    main()
