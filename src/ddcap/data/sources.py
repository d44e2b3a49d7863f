"""Sources of an image: a path, a PIL image, bytes of a file, an open file, an array of pixels."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ddcap.errors import ImageError

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a drive (C:/) has one letter
_GIVE = (
    "give a path, a PIL image, the bytes of an image file, a file opened with mode 'rb', or a numpy array "
    "(height, width, 3) of uint8"
)


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file that is no file here (of a shard, an upload); `name` is for messages."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


ImageSource = (
    str
    | os.PathLike[str]
    | Image.Image
    | EncodedImage
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | np.ndarray[Any, Any]
)
"""What an image may be given as. An array has shape (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), and uint8."""


def is_one_image(source: Any) -> bool:
    """Return True for one image; else it may be several: a list of them, an array (I, H, W, 3)."""
    if isinstance(source, np.ndarray):
        return source.ndim in (2, 3) and source.dtype.kind not in "OSU"  # else names of files
    plain = (str, os.PathLike, Image.Image, EncodedImage, bytes, bytearray, memoryview)
    return isinstance(source, plain) or hasattr(source, "read") or is_tensor(source)


def is_tensor(source: Any) -> bool:
    """Return True for a tensor of PyTorch, which need not be installed."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(source).__mro__)


def taken(source: Any, unnamed: str = "image") -> Path | Image.Image | EncodedImage:
    """Read what `source` stands for: a file, an image in memory, or the bytes of a file.

    Args:
        source: an image in any of the ways of `ImageSource`.
        unnamed: what to call it in messages, where it has no name of its own.

    Raises:
        ImageError: if it is something else, or an open file that cannot be read.
    """
    if isinstance(source, Image.Image | EncodedImage):
        return source
    if isinstance(source, str | os.PathLike):
        return _path(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _content(unnamed, bytes(source))
    if isinstance(source, np.ndarray):
        return _from_array(source, unnamed)
    if is_tensor(source):
        raise ImageError(
            f"{unnamed}: is a tensor of shape {tuple(source.shape)}; give an array (height, width, 3) of "
            "uint8: tensor.permute(1, 2, 0).cpu().numpy()"
        )
    if hasattr(source, "read"):
        return _from_file(source, unnamed)
    raise ImageError(f"{unnamed}: is no image but of type {type(source).__name__}; {_GIVE}")


def _path(path: Any) -> Path:
    name = os.fsdecode(path)
    if name[:5].lower() == "data:":
        raise ImageError(
            f"{name[:30]}...: is a data URL; give its bytes: base64.b64decode(url.partition(',')[2])"
        )
    if _URL.match(name):
        raise ImageError(
            f"{name}: is a URL, which ddcap does not download; save the file and give its path, or give its "
            "bytes: urllib.request.urlopen(url).read()"
        )
    return Path(name)


def _content(name: str, content: bytes) -> EncodedImage:
    if not content:
        raise ImageError(f"{name}: has 0 bytes; {_GIVE}")
    return EncodedImage(name, content)


def _from_file(file: Any, unnamed: str) -> EncodedImage:
    """The whole content of an open file, wherever it stands."""
    own = getattr(file, "name", None)
    name = own if isinstance(own, str) and own else unnamed
    if isinstance(file, io.TextIOBase):
        raise ImageError(f"{name}: is open as text; open it with mode 'rb'")
    try:
        if hasattr(file, "seek") and file.seekable():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError, AttributeError) as error:  # a closed file raises ValueError
        raise ImageError(f"{name}: cannot be read ({error}); open the file again") from None
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ImageError(f"{name}: read() gives {type(content).__name__}, not bytes; open it with mode 'rb'")
    return _content(name, bytes(content))


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    """An image of pixels (H, W, 3), (H, W, 4), (H, W, 1) or (H, W)."""
    shape = tuple(array.shape)
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        is_channels_first = array.ndim == 3 and shape[0] in (1, 3, 4)
        remedy = ": array.transpose(1, 2, 0)" if is_channels_first else ""
        raise ImageError(f"{name}: is an array of shape {shape}; give (height, width, 3){remedy}")
    if array.dtype != np.uint8:
        remedy = ": (array * 255).round().astype('uint8') if 1 is white" if array.dtype.kind == "f" else ""
        raise ImageError(f"{name}: is an array of {array.dtype}; give uint8, 0 to 255{remedy}")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if shape[2:] == (1,) else array))
