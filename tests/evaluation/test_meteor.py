import os
import shutil
import time

import pytest

from ddcap.errors import DDCapError
from ddcap.evaluation import external as module
from ddcap.evaluation.external import meteor

pytest.importorskip("pycocoevalcap.meteor.meteor")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not on the path: no METEOR")

REFERENCES = {
    "dog": ["a brown dog runs on the beach", "the dog 's running along the water", "a dog at the sea"],
    "cup": ["a cup of coffee on a café table", "coffee is n't cold ||| in a cup"],
    "empty": ["a rocket stands before the start", "a white rocket"],
}
CAPTIONS = {"cup": "a mug of coffee on the café table", "dog": "the puppy ran on a beach", "empty": ""}


# what pycocoevalcap 1.2's own class makes, in 20 seconds, of all of these, and of "cup", "dog" and "empty"
OF_ALL, OF_EACH = 0.21714776761177226, [0.35825224651674414, 0.24604696914489452, 0.0]


@needs_java
@pytest.mark.slow
def test_meteor_equals_pycocoevalcap_in_any_locale(monkeypatch):
    assert pytest.approx(sum(OF_EACH) / 3, abs=0.01) != OF_ALL
    # a machine on which decimals have a comma, where METEOR cannot read numbers that it has itself written
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    score = meteor(CAPTIONS, REFERENCES)["METEOR"]
    assert score.value == pytest.approx(OF_ALL, abs=1e-9)
    assert score.per_image is None


def test_without_java_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DDCapError, match=r"^Java is not on the path; run: apt install default-jre-headless"):
        meteor(CAPTIONS, REFERENCES)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('java.lang.OutOfMemoryError: heap')", "java.lang.OutOfMemoryError: heap"),
        ("print('1.0')\nprint('1.0')\nprint('1.0')\nprint('1.0')\nprint('0,5')\nprint('0,5')", "no message"),
    ],
)
def test_a_failing_program_is_one_line(script, reason, fake_java):
    fake_java(script)
    with pytest.raises(DDCapError) as caught:
        meteor(CAPTIONS, REFERENCES)
    assert str(caught.value).startswith(f"METEOR's Java program failed ({reason})")


def test_a_program_that_hangs_is_ended(fake_java, monkeypatch, tmp_path):
    pid = tmp_path / "pid"
    fake_java(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    monkeypatch.setattr(module, "_SECONDS_TO_START", 2)
    monkeypatch.setattr(module, "_SECONDS_PER_IMAGE", 0)
    start = time.monotonic()
    with pytest.raises(DDCapError, match="METEOR's Java program failed"):
        meteor(CAPTIONS, REFERENCES)
    assert time.monotonic() - start < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
