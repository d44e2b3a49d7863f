"""XMP sidecars of other programs: the caption comes in, and every byte that was there stays."""

import json
import shutil
import subprocess

import pytest

from ddcap.bulk.sidecars import Sidecars
from ddcap.bulk.xmp import description_in, with_description
from ddcap.errors import DataError

TEXT = 'A dog, "Füchschen" & <犬>'
START = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">\n'
    ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
)
END = " </rdf:RDF>\n</x:xmpmeta>\n"
DARKTABLE = (
    START
    + """  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal='2026:01:02 03:04:05'
   xmp:Rating="4"
   darktable:auto_presets_applied="1">
   <!-- edits -->
   <darktable:history>
    <rdf:Seq>
     <rdf:li darktable:operation="exposure" darktable:params="00000000&#10;ab&gt;"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
"""
    + END
)
DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'


def described(inside, attributes=""):
    return f'{START}<rdf:Description rdf:about="uuid:7" {DC}{attributes}>{inside}</rdf:Description>\n{END}'


def alt(*languages):
    items = "".join(f'<rdf:li xml:lang="{name}">{text}</rdf:li>' for name, text in languages)
    return f"<dc:description><rdf:Alt>{items}</rdf:Alt></dc:description>"


@pytest.mark.parametrize("before", ["", "\ufeff"])
@pytest.mark.parametrize("packet", [DARKTABLE, described("<dc:title/>")])
def test_other_programs_content_stays_byte_for_byte(packet, before):
    old = (before + packet).encode()
    new = with_description(old, TEXT)
    place = old.index(b"</rdf:RDF>")
    assert new.startswith(old[:place]) and new.endswith(old[place:]) and description_in(new) == TEXT
    assert description_in(old) is None


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("packet", [None, DARKTABLE, described(alt(("x-default", "old"), ("de", "alt")))])
def test_exiftool_reads_the_description(tmp_path, packet):
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(with_description(None if packet is None else packet.encode(), TEXT))
    told = json.loads(subprocess.run(["exiftool", "-j", str(path)], capture_output=True, check=True).stdout)[
        0
    ]
    assert told["Description"] == TEXT and ("Rating" in told) == (packet == DARKTABLE)
    exiv2 = pytest.importorskip("exiv2")
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    values = {datum.key(): datum.toString() for datum in image.xmpData()}
    assert TEXT in values["Xmp.dc.description"]
    assert packet != DARKTABLE or values["Xmp.darktable.auto_presets_applied"] == "1"


def test_only_the_description_in_the_default_language_is_written_over():
    for inside in (
        alt(("x-default", "old"), ("de", "alt")),
        alt(("de", "alt"), ("x-default", "o<!-- -->ld")),
    ):
        new = with_description(described(inside).encode(), TEXT).decode()
        assert description_in(new.encode()) == TEXT and '"de">alt<' in new and "old" not in new
    for empty in (
        "<dc:description/>",
        alt(),
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default"/></rdf:Alt>',
    ):
        empty += "" if "</dc" in empty or "/>" in empty[-3:] else "</dc:description>"
        packet = described(empty).encode()
        assert description_in(packet) is None and description_in(with_description(packet, TEXT)) == TEXT


@pytest.mark.parametrize(
    "packet, reason",
    [
        ("", "is no XMP"),
        ("no xmp", "is no XMP"),
        ("<a/>", "there is no rdf:RDF"),
        (f'<!DOCTYPE a [<!ENTITY b "c">]>{DARKTABLE.partition(chr(10))[2]}', "document type"),
        (DARKTABLE.replace("UTF-8", "latin-1"), "only UTF-8"),
        (described(alt(("de", "mein"))), "not in its default language"),
        (described("", ' dc:description="mine"'), "not in its default language"),
    ],
)
def test_unsupported_packets_are_refused_and_unchanged(tmp_path, packet, reason):
    with pytest.raises(DataError, match=reason):
        with_description(packet.encode(), TEXT)
    image = tmp_path / "a.jpg"
    (tmp_path / "a.jpg.xmp").write_text(packet)
    with pytest.raises(DataError, match=r"a\.jpg: its sidecar a\.jpg\.xmp .*--out"):
        Sidecars("xmp").write(image, TEXT, overwrite=True)
    assert (tmp_path / "a.jpg.xmp").read_text() == packet


def test_a_description_of_the_user_stays(tmp_path):
    image, sidecar = tmp_path / "a.jpg", tmp_path / "a.jpg.xmp"
    sidecars = Sidecars("xmp")
    sidecar.write_text(DARKTABLE)
    assert not sidecars.is_done(image)
    assert sidecars.write(image, "mine") and sidecars.is_done(image)
    assert not sidecars.write(image, TEXT) and description_in(sidecar.read_bytes()) == "mine"
    assert sidecars.write(image, TEXT, overwrite=True) and description_in(sidecar.read_bytes()) == TEXT
    assert 'xmp:Rating="4"' in sidecar.read_text()
