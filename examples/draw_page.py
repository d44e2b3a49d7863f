"""Photograph the page of `ddcap serve` in a headless Chromium, as one PNG.

pip install -c constraints-web.txt ".[dev-web]"
python examples/draw_page.py examples/animals/giraffes.jpg page.png
python examples/draw_page.py examples/animals/giraffes.jpg phone.png --width 390 --colours dark --step 5
"""

import argparse
import shutil
import threading
import time

import uvicorn
from playwright.sync_api import sync_playwright

from ddcap import Captioner
from ddcap.page.mount import add_page
from ddcap.serve.app import create_app
from ddcap.serve.limits import ServeLimits


def main() -> None:
    """Serve, open, drop the photograph, go to the step, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("output")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--colours", choices=("light", "dark"), default="light")
    parser.add_argument("--step", type=int, help="that the slider shows (default: the last)")
    options = parser.parse_args()
    app = create_app(Captioner.from_pretrained())
    add_page(app, ServeLimits())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(
            viewport={"width": options.width, "height": 640},
            color_scheme=options.colours,
            reduced_motion="reduce",
        )
        page.goto(f"http://127.0.0.1:{port}/")
        page.set_input_files("#picture input[type=file]", options.photo)
        page.wait_for_selector("#caption .word")
        if options.step is not None:
            page.fill("#caption input[type=range]", str(options.step))
            page.evaluate("document.activeElement.blur()")
        page.screenshot(path=options.output, full_page=True)
        browser.close()
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
