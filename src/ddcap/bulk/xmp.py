"""A caption in an XMP sidecar: a new one, or put into that of another program, whose bytes stay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from ddcap.errors import DataError

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_DESCRIPTION = "http://purl.org/dc/elements/1.1/ description"
_LANGUAGE = "http://www.w3.org/XML/1998/namespace lang"
_TAG = re.compile(rb"""<([^\s/>]+)(?:[^"'>]|"[^"]*"|'[^']*')*>""")

_NEW = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
_BLOCK = """ <rdf:Description rdf:about={about} xmlns:dc="http://purl.org/dc/elements/1.1/"
   xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
   {description}
  </rdf:Description>
 """
_ELEMENT = """<dc:description xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Alt \
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt>\
</dc:description>"""


def description_in(packet: bytes) -> str | None:
    """The description of a packet, in its default or any other language; None if it has none.

    Raises:
        DataError: if it is no XMP that can be read, without the file's name.
    """
    found = _Reader(packet)
    return (found.default.text if found.default else "") or found.any_text or None


def with_description(packet: bytes | None, caption: str) -> bytes:
    """A packet with `caption` as its description in the default language.

    Args:
        packet: of any program; None: a new one.
        caption: what stands there now.

    Raises:
        DataError: if it is no XMP, or its description has a form that cannot be replaced; without the name.
    """
    packet = _NEW.encode() if packet is None else packet
    found = _Reader(packet)
    if found.default is not None:
        place = found.default
        begin = _TAG.match(packet, place.start)
        assert begin is not None
        tag = begin[0][:-2].rstrip() + b">" if begin[0].endswith(b"/>") else begin[0]
        new = tag + escape(caption).encode() + b"</" + begin[1] + b">"
    elif found.any_text:
        raise DataError("has a description that is not in its default language; remove that one")
    elif found.description is not None:  # an empty one
        place, new = found.description, _ELEMENT.format(escape(caption)).encode()
    elif found.end is not None:
        place = _Place(found.end, found.end)
        description = f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(caption)}</rdf:li>'
        description += "</rdf:Alt></dc:description>"
        new = _BLOCK.format(about=quoteattr(found.about), description=description).encode()
    else:
        raise DataError("has nothing in it; remove it")
    merged = packet[: place.start] + new + packet[place.stop :]
    again = _Reader(merged)
    if again.default is None or again.default.text != caption:
        raise DataError("is laid out in a way that cannot be added to")
    return merged


@dataclass
class _Place:
    """An element: the bytes from `start` to `stop`, and its text."""

    start: int
    stop: int
    text: str = ""


class _Reader:
    """A reader of an XMP packet that notes the positions of its parts.

    Args:
        packet: its bytes.

    Attributes:
        end: of what describes the image: a new description goes there.
        about: what the descriptions are of, for the programs that say so.
        description: the element, if there is one.
        default: its text in the default language.
        any_text: of the description, in whatever form or language.
    """

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self.end: int | None = None
        self.about: str = ""
        self.description: _Place | None = None
        self.default: _Place | None = None
        self.any_text = ""
        self._open: list[tuple[str, int]] = []
        self._is_default = False
        self._knows_about = False
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._stop
        parser.CharacterDataHandler = self._characters
        parser.XmlDeclHandler, parser.StartDoctypeDeclHandler = self._declared, self._doctype
        self._parser = parser
        try:
            packet.decode()
            parser.Parse(packet, True)
        except (expat.ExpatError, UnicodeDecodeError) as error:
            raise DataError(f"is no XMP ({error})") from None
        if not self._has_rdf:
            raise DataError("is no XMP (there is no rdf:RDF in it)")

    _has_rdf = False

    def _declared(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii"):
            raise DataError(f"is in {encoding}, and only UTF-8 is read")

    def _doctype(self, *_: object) -> None:
        raise DataError("is no XMP (it has a document type)")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        where = self._parser.CurrentByteIndex
        self._open.append((name, where))
        if name == _RDF + "RDF":
            self._has_rdf = True
        elif name == _RDF + "Description" and len(self._open) > 1 and self._open[-2][0] == _RDF + "RDF":
            if not self._knows_about:
                self.about = attributes.get(_RDF + "about", attributes.get("about", ""))
                self._knows_about = True
            self.any_text += attributes.get(_DESCRIPTION, "").strip()
        elif name == _RDF + "li" and self._is_in_description() and self.default is None:
            self._is_default = attributes.get(_LANGUAGE) == "x-default"
            if self._is_default:
                self.default = _Place(where, where)

    def _stop(self, name: str) -> None:
        _, start = self._open.pop()
        tag, here = _TAG.match(self._packet, start), self._parser.CurrentByteIndex
        is_empty = tag is not None and tag[0].endswith(b"/>")
        stop = tag.end() if tag is not None and is_empty else self._packet.find(b">", here) + 1
        if name == _RDF + "RDF" and not is_empty:
            self.end = here
        if name == _DESCRIPTION and self._is_of_image():
            self.description = _Place(start, stop)
        if name == _RDF + "li" and self._is_default:
            assert self.default is not None
            self.default.stop = stop
            self._is_default = False

    def _characters(self, text: str) -> None:
        if self._is_in_description():
            self.any_text += text.strip()
            if self._is_default and self.default is not None:
                self.default.text += text

    def _is_of_image(self) -> bool:
        return [name for name, _ in self._open[-2:]] == [_RDF + "RDF", _RDF + "Description"]

    def _is_in_description(self) -> bool:
        return any(name == _DESCRIPTION for name, _ in self._open)
