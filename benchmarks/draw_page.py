"""Save a screenshot of the page of `ddcap serve`, taken in a headless Chromium, as a PNG.

pip install -c constraints-web.txt ".[dev-web]"
python benchmarks/draw_page.py examples/animals/giraffes.jpg page.png
python benchmarks/draw_page.py examples/animals/giraffes.jpg phone.png --width 390 --colours dark --step 5
"""

import argparse

from headless import PagedService, chromium

from ddcap import Captioner


def main() -> None:
    """Start the service, open its page, add the photograph, choose the step, take the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", help="image file")
    parser.add_argument("output", help="PNG file to write")
    parser.add_argument("--width", type=int, default=1200, help="use this page width, in pixels")
    parser.add_argument("--colours", choices=("light", "dark"), default="light")
    parser.add_argument("--step", type=int, help="set the slider to this step (default: the last)")
    options = parser.parse_args()
    with PagedService(Captioner.from_pretrained()) as service, chromium() as browser:
        page = browser.new_page(
            viewport={"width": options.width, "height": 640},
            color_scheme=options.colours,
            reduced_motion="reduce",
        )
        page.goto(service.address)
        page.set_input_files("#picture input[type=file]", options.photo)
        page.wait_for_selector("#caption .word")
        if options.step is not None:
            page.fill("#caption input[type=range]", str(options.step))
            page.evaluate("document.activeElement.blur()")
        page.screenshot(path=options.output, full_page=True)


if __name__ == "__main__":
    main()
