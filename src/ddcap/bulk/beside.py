"""Captions beside pictures: text files and XMP sidecars, and copies with the caption written into them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape

from ddcap.bulk.walk import SeenNames
from ddcap.errors import DataError, MissingExtraError
from ddcap.files import replacing, write_text


class Beside(Protocol):
    """Writes a caption to where it is found by its picture's name."""

    def is_done(self, picture: Path) -> bool:
        """Whether it is there already."""

    def write(self, picture: Path, caption: str) -> None:
        """Write it, whole or not at all.

        Raises:
            DDCapError: if it cannot be.
            OSError: so, too.
        """


_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


class Sidecars:
    """photo.txt, or photo.jpg.xmp, as programs for photo libraries look for it.

    Args:
        kind: "txt", or "xmp" for a description that photo libraries read.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def is_done(self, picture: Path) -> bool:
        """Whether there is one."""
        return self._of(picture).exists()

    def write(self, picture: Path, caption: str) -> None:
        """Write one.

        Raises:
            OSError: if it cannot be written.
        """
        text = caption + "\n" if self._kind == "txt" else _XMP.format(escape(caption))
        write_text(self._of(picture), text)

    def _of(self, picture: Path) -> Path:
        is_text = self._kind == "txt"
        return picture.with_suffix(".txt") if is_text else picture.with_name(picture.name + ".xmp")


# Copies with the caption in them. The picture itself is copied as it is compressed; exiv2 writes the fields.

FIELDS = ("exif", "iptc", "xmp", "alt")
"""Where a caption can stand in a picture: Exif ImageDescription, IPTC Caption-Abstract, XMP dc:description,
and the alternative text for screen readers of IPTC 2021, in XMP."""
SYNCHRONOUS = ("exif", "iptc", "xmp")
"""The three descriptions that programs for photo libraries keep alike."""

_LONGEST_IPTC = 2000  # bytes, by the standard


class DescribedCopies:
    """Copies of pictures, in the same folders below another one, with the caption in each.

    Args:
        folder: is made; not in or above what is captioned.
        given: the files and folders that are captioned.
        fields: of `FIELDS`.

    Raises:
        DataError: if a picture and its copy could be one file.
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
        self._folder, self._fields, self._taken = folder, tuple(fields), SeenNames()
        self._folders = [Path(path) for path in given if Path(path).is_dir()]
        for path in self._folders:
            if folder.resolve().is_relative_to(path.resolve()):
                raise DataError(
                    f"{folder}: is inside {path}, the folder to caption; choose a folder outside it"
                )

    def is_done(self, picture: Path) -> bool:
        """Whether there is a copy."""
        return self._of(picture).exists()

    def write(self, picture: Path, caption: str) -> None:
        """Make a copy.

        Raises:
            DataError: if the format has no place for a caption, or another picture's copy has the name.
            OSError: if it cannot be written.
        """
        copy = self._of(picture)
        if not self._taken.add(str(copy)):
            raise DataError(f"{copy}: another image has the same name; caption the folders one at a time")
        if copy.exists() and copy.samefile(picture):
            raise DataError(f"{copy}: is the original image; give --copy-to another folder")
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary:
            shutil.copyfile(picture, temporary)
            try:
                self._describe(temporary, picture, caption)
            except self._exiv2.Exiv2Error as error:
                reason = str(error.args[-1]).replace(str(temporary), "its copy")
                raise self._refused(picture, reason) from None
            shutil.copystat(picture, temporary)

    def _of(self, picture: Path) -> Path:
        inside = [folder for folder in self._folders if picture.is_relative_to(folder)]
        return self._folder / (picture.relative_to(inside[0]) if inside else picture.name)

    def _refused(self, picture: Path, reason: str) -> DataError:
        return DataError(
            f"{picture}: cannot hold a caption in {', '.join(self._fields)} ({reason}); "
            "convert it to JPEG, PNG or TIFF, or use --sidecar xmp"
        )

    def _describe(self, file: Path, picture: Path, caption: str) -> None:
        exiv2 = self._exiv2
        image = exiv2.ImageFactory.open(str(file))
        kinds = {"exif": exiv2.MetadataId.Exif, "iptc": exiv2.MetadataId.Iptc}
        can = {
            field: bool(image.checkMode(kinds.get(field, exiv2.MetadataId.Xmp)) & exiv2.AccessMode.Write)
            for field in self._fields
        }
        if not any(can.values()):
            raise self._refused(picture, "its format has no such metadata")
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
