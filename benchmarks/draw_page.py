"""Save a screenshot of either web page, taken in a headless Chromium, as a PNG.

The page of `ddcap serve` (pip install -c constraints-web.txt ".[dev-web]"), or the static one in a folder:

    python benchmarks/draw_page.py examples/animals/giraffes.jpg page.png
    python benchmarks/draw_page.py examples/animals/giraffes.jpg phone.png --width 390 --colours dark --step 5
    python benchmarks/draw_page.py examples/animals/giraffes.jpg browser.png --site site
"""

import argparse
from pathlib import Path

from headless import PagedService, chromium, static_host
from playwright.sync_api import Browser

from ddcap import Captioner

PATIENCE = 600_000  # milliseconds


def main() -> None:
    """Open the page, give it the photograph, choose the step, take the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", help="image file")
    parser.add_argument("output", help="PNG file to write")
    parser.add_argument("--site", type=Path, help="folder that 'ddcap export --web' wrote")
    parser.add_argument("--width", type=int, default=1200, help="use this page width, in pixels")
    parser.add_argument("--colours", choices=("light", "dark"), default="light")
    parser.add_argument("--step", type=int, help="set the slider to this step (default: the last)")
    options = parser.parse_args()
    with chromium() as browser:
        if options.site:
            with static_host(options.site) as address:
                draw(browser, address, "body[data-model=ready]", options)
        else:
            with PagedService(Captioner.from_pretrained()) as service:
                draw(browser, service.address, "[data-sample] img", options)


def draw(browser: Browser, address: str, ready: str, options: argparse.Namespace) -> None:
    """Save the image, once what `ready` selects is there and the photograph has its caption."""
    page = browser.new_page(
        viewport={"width": options.width, "height": 640},
        color_scheme=options.colours,
        reduced_motion="reduce",
    )
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector(ready)
    page.set_input_files(".file >> nth=0", options.photo)
    page.wait_for_selector(".ddcap[data-state=shown]")
    if options.step is not None:
        page.fill(".replay input", str(options.step))
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=options.output, full_page=True)


if __name__ == "__main__":
    main()
