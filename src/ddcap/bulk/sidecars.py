"""Captions beside images: text files and XMP sidecars, and copies with the caption written into them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ddcap.bulk.claim import JOB_FILE, Claim
from ddcap.bulk.names import ImageNames
from ddcap.bulk.walk import SeenNames
from ddcap.bulk.xmp import description_in, with_description
from ddcap.errors import DataError, MissingExtraError
from ddcap.files import replacing


class Beside(Protocol):
    """Writes a caption to where it is found by its image's name.

    Attributes:
        options: what it is, as the command line has it.
    """

    options: Mapping[str, Any]

    def begin(self, options: Mapping[str, Any], *, overwrite: bool) -> None:
        """Prepare for a job, with the options of its captions.

        Raises:
            DataError: if what is there was made with others, or another job writes there.
            OSError: if it cannot be written.
        """

    def check(self, image: Path) -> None:
        """Take the place of an image's caption.

        Raises:
            DataError: if it is that of another image of this job.
        """

    def is_done(self, image: Path) -> bool:
        """Return True if something is there already, of this program or not."""

    def write(self, image: Path, caption: str, *, overwrite: bool = False) -> bool:
        """Write it, whole or not at all; False if something is there, and stays.

        Raises:
            DDCapError: if it cannot be.
            OSError: so, too.
        """

    def close(self) -> None:
        """Let other jobs write there."""


class _Places:
    """The places that images of a job have taken; 16 bytes for each."""

    def __init__(self) -> None:
        self._names = ImageNames(os.getcwd())
        self._places, self._owners = SeenNames(self._names.key), SeenNames()

    def take(self, place: Path, image: Path) -> bool:
        """Take a place for an image; False if another image has it."""
        owner = f"{self._names.key(str(place))}\n{self._names.key(str(image))}"
        return self._owners.add(owner) if self._places.add(str(place)) else owner in self._owners


class Sidecars:
    """photo.txt, or photo.jpg.xmp, as programs for photo libraries look for it.

    An XMP sidecar may be of another program, with an image's rating and edits: it gets the caption as its
    description, and is otherwise left as it is.

    Args:
        kind: "txt", or "xmp" for a description that photo libraries read.
    """

    def __init__(self, kind: str) -> None:
        self._kind, self._places = kind, _Places()
        self.options: Mapping[str, Any] = {"sidecar": kind}

    def begin(self, options: Mapping[str, Any], *, overwrite: bool) -> None:
        """Nothing: no sidecar is written over that is there."""

    def check(self, image: Path) -> None:
        """See `Beside`."""
        if not self._places.take(self._of(image), image):
            raise DataError(
                f"{image}: another image has the same name, and so the same sidecar, "
                f"{self._of(image).name}; rename one, or use --sidecar xmp"
            )

    def is_done(self, image: Path) -> bool:
        """Return True if there is a text file, or a description in XMP."""
        path = self._of(image)
        if not os.path.lexists(path) or self._kind == "txt":
            return os.path.lexists(path)
        try:
            return description_in(path.read_bytes()) is not None
        except (DataError, OSError):
            return False  # `write` will say so

    def write(self, image: Path, caption: str, *, overwrite: bool = False) -> bool:
        """See `Beside`."""
        path = self._of(image)
        try:
            if self._kind == "xmp" and os.path.lexists(path):
                return _merge(Path(os.path.realpath(path)), caption, overwrite=overwrite)
            content = (caption + "\n").encode() if self._kind == "txt" else with_description(None, caption)
            keep = self._kind == "xmp" or not overwrite
            with replacing(path, keep=keep) as temporary, open(temporary, "wb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except DataError as error:
            raise DataError(
                f"{image}: its sidecar {path.name} {error}, or choose --sidecar txt or --out"
            ) from None
        return True

    def close(self) -> None:
        """Nothing."""

    def _of(self, image: Path) -> Path:
        is_text = self._kind == "txt"
        return image.with_suffix(".txt") if is_text else image.with_name(image.name + ".xmp")


def _merge(path: Path, caption: str, *, overwrite: bool) -> bool:
    """Put a caption into an XMP file, unless it has one; see `Beside.write`."""
    before, packet = path.stat(), path.read_bytes()
    if description_in(packet) is not None and not overwrite:
        return False
    merged = with_description(packet, caption)
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(merged)
        now = path.stat()
        if (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
            raise DataError("is being written by another program; run the job again")
    return True


# Copies with the caption in them. The image itself is copied as it is compressed; exiv2 writes the fields.

FIELDS = ("exif", "iptc", "xmp", "alt")
"""Where a caption can stand in an image: Exif ImageDescription, IPTC Caption-Abstract, XMP dc:description,
and the alternative text for screen readers of IPTC 2021, in XMP."""
SYNCHRONOUS = ("exif", "iptc", "xmp")
"""The three descriptions that programs for photo libraries keep alike."""

_LONGEST_IPTC = 2000  # bytes, by the standard


class DescribedCopies:
    """Copies of images, in the same folders below another one, with the caption in each.

    Args:
        folder: is made; not in or above what is captioned.
        given: the files and folders that are captioned.
        fields: of `FIELDS`.

    Raises:
        DataError: if an image and its copy could be one file.
        MissingExtraError: if exiv2 is not installed.
    """

    def __init__(
        self, folder: Path, given: Iterable[str | Path], fields: Sequence[str] = SYNCHRONOUS
    ) -> None:
        try:
            import exiv2
        except ImportError:
            raise MissingExtraError("writing captions into image metadata", "photo") from None
        self._exiv2: Any = exiv2
        self._folder, self._fields, self._places = folder, tuple(fields), _Places()
        self._claim: Claim | None = None
        self.options: Mapping[str, Any] = {"copy_to": os.path.realpath(folder), "write": list(fields)}
        self._folders = []
        real = folder.resolve()
        for path in map(Path, given):
            if not path.is_dir():
                if path.resolve().is_relative_to(real):
                    raise DataError(f"{folder}: contains {path}, an image to caption; choose another folder")
                continue
            self._folders.append(path)
            if real.is_relative_to(path.resolve()):
                raise DataError(
                    f"{folder}: is inside {path}, the folder to caption; choose a folder outside it"
                )
            if path.resolve().is_relative_to(real):
                raise DataError(f"{folder}: contains {path}, the folder to caption; choose another folder")

    def begin(self, options: Mapping[str, Any], *, overwrite: bool) -> None:
        """See `Beside`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        has_content = any(path.name != JOB_FILE for path in self._folder.iterdir())
        self._claim = Claim(self._folder, goes_on=has_content and not overwrite)
        try:
            self._claim.agree(options)
        except BaseException:
            self._claim.release()
            raise

    def close(self) -> None:
        """See `Beside`."""
        if self._claim is not None:
            self._claim.release()

    def check(self, image: Path) -> None:
        """See `Beside`."""
        copy = self._of(image)
        if not self._places.take(copy, image):
            raise DataError(
                f"{image}: another image has the same name, and so the same copy, {copy}; "
                "copy them to different folders"
            )

    def is_done(self, image: Path) -> bool:
        """Return True if there is a copy."""
        return os.path.lexists(self._of(image))

    def write(self, image: Path, caption: str, *, overwrite: bool = False) -> bool:
        """See `Beside`; a format that has no place for a caption is an error."""
        self.check(image)
        copy = self._of(image)
        if copy.exists() and copy.samefile(image):
            raise DataError(f"{copy}: is the original image; give --copy-to another folder")
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(copy, keep=not overwrite) as temporary:
                try:
                    with open(temporary, "wb") as file:
                        file.write(self._described(image, caption))
                except self._exiv2.Exiv2Error as error:
                    raise self._refused(image, str(error.args[-1])) from None
                shutil.copystat(image, temporary)
        except FileExistsError:
            return False
        return True

    def _of(self, image: Path) -> Path:
        inside = [folder for folder in self._folders if image.is_relative_to(folder)]
        return self._folder / (image.relative_to(inside[0]) if inside else image.name)

    def _refused(self, image: Path, reason: str) -> DataError:
        return DataError(
            f"{image}: cannot hold a caption in {', '.join(self._fields)} ({reason}); "
            "convert it to JPEG, PNG or TIFF, or use --sidecar xmp"
        )

    def _described(self, source: Path, caption: str) -> bytes:
        """The file with its caption. It is opened from memory: exiv2 takes no names that are not UTF-8."""
        exiv2, content = self._exiv2, source.read_bytes()
        image = exiv2.ImageFactory.open(content)
        kinds = {"exif": exiv2.MetadataId.Exif, "iptc": exiv2.MetadataId.Iptc}
        can = {
            field: bool(image.checkMode(kinds.get(field, exiv2.MetadataId.Xmp)) & exiv2.AccessMode.Write)
            for field in self._fields
        }
        if not any(can.values()):
            raise self._refused(source, "its format has no such metadata")
        image.readMetadata()
        if can.get("exif"):
            image.exifData()["Exif.Image.ImageDescription"] = caption
        if can.get("iptc"):
            data = image.iptcData()
            if data.empty() or not caption.isascii():  # what stands there may be in another encoding
                data["Iptc.Envelope.CharacterSet"] = "\x1b%G"  # UTF-8
            data["Iptc.Application2.Caption"] = caption.encode()[:_LONGEST_IPTC].decode(errors="ignore")
        for field, key in (("xmp", "Xmp.dc.description"), ("alt", "Xmp.iptc.AltTextAccessibility")):
            if can.get(field):
                image.xmpData()[key] = f'lang="x-default" {caption}'
        image.writeMetadata()
        described = image.io()
        described.open()
        return bytes(described.data())
