"""Get captions from a running `ddcap serve` with one HTTP call and the standard library.

python examples/ask_service.py photo.jpg other.jpg --address http://127.0.0.1:8000
"""

import argparse
import base64
import json
import os
import urllib.request
from pathlib import Path
from typing import Any


def captions(
    images: list[bytes], address: str = "http://127.0.0.1:8000", key: str | None = None, **asked: Any
) -> list[dict[str, Any]]:
    """Return one answer per image: {"caption": ..., "sure": ...} or {"error": ...}.

    Args:
        images: contents of image files.
        address: URL of the service.
        key: API key, if the service needs one.
        asked: options of the service, for example include=["red bicycle"], max_chars=125.
    """
    body = {"images": [base64.b64encode(image).decode() for image in images], **asked}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{address}/v1/captions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        results: list[dict[str, Any]] = json.load(answer)["results"]
    return results


def main() -> None:
    """Print one line per image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    parser.add_argument("--address", default="http://127.0.0.1:8000", help="ask the service at this URL")
    options = parser.parse_args()
    key = os.environ.get("DDCAP_KEY")
    answers = captions([path.read_bytes() for path in options.images], options.address, key)
    for path, answer in zip(options.images, answers, strict=True):
        print(f"{path}: {answer.get('caption') or answer.get('error')}")


if __name__ == "__main__":
    main()
