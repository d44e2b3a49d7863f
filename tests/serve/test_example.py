"""One HTTP call is enough: the example asks a running service."""

import runpy
from pathlib import Path

from ddcap import Captioner

EXAMPLE = Path(__file__).parents[2] / "examples" / "ask_service.py"


def test_the_example_asks_and_prints(service, photos, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    words = ["ask_service.py", *map(str, photos[:2]), str(broken), "--address", service.address]
    monkeypatch.setattr("sys.argv", words)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    expected = [caption.text for caption in Captioner.from_pretrained()(photos[:2])]
    assert lines[:2] == [f"{photo}: {text}" for photo, text in zip(photos, expected, strict=False)]
    assert len(lines) == 3 and lines[2].startswith(f"{broken}: ") and "not an image" in lines[2]


def test_the_function_of_the_example_takes_options(service, photos):
    captions = runpy.run_path(str(EXAMPLE))["captions"]
    (answer,) = captions([photos[0].read_bytes()], service.address, include=["red bicycle"], max_chars=80)
    assert "red bicycle" in answer["caption"] and len(answer["caption"]) <= 80
