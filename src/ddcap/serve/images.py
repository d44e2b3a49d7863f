"""Images that strangers send: opened within limits, one a core at a time."""

from __future__ import annotations

import threading

from PIL import Image

from ddcap.data.images import EncodedImage, Preprocessing, load_image
from ddcap.errors import ImageError
from ddcap.machine import own_cores
from ddcap.serve.limits import ServeLimits

_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"  # how a JPEG file begins, and each of its scans
MOST_SCANS = 200  # encoders write about ten
# while it is decoded, an image takes up to 20 bytes a pixel: as many at once as there are cores
_turn = threading.BoundedSemaphore(own_cores())


def opened(content: bytes, name: str, limits: ServeLimits, preprocessing: Preprocessing) -> Image.Image:
    """An image from the bytes of its file, as small as the model sees it.

    Args:
        content: of the file.
        name: of the image, for messages.
        limits: on a request.
        preprocessing: of the model; it finds the same pixels in what is given back as in the whole image.

    Raises:
        ImageError: if it cannot be read, or is over a limit.
    """
    if not content:
        raise ImageError(f"{name}: is empty; send an image")
    # each scan of a progressive JPEG goes over the whole image, and may have no more than a few bytes
    if content.startswith(_JPEG) and content.count(_SCAN) > MOST_SCANS:
        raise ImageError(f"{name}: has more than {MOST_SCANS} scans; save the image again")
    with _turn:
        return preprocessing.view(load_image(EncodedImage(name, content), limits.pixels))
