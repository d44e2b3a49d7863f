import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from ddcap.errors import DDCapError
from ddcap.evaluation.external import JARS, read_printed_mean, spice
from ddcap.evaluation.tokenization import java_command, java_environment

program = pytest.importorskip("pycocoevalcap.spice.spice")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not on the path: no SPICE")
CAPTIONS, REFERENCES = {"dog": "a dog runs"}, {"dog": ["a brown dog runs on the beach"]}

PRINT_TWO_IMAGES = """
package edu.anu.spice;
public class Show {
    public static void main(String[] args) {
        SpiceStats stats = new SpiceStats(new java.util.HashMap<String, TupleFilter>(), false);
        for (double f : new double[] {0.25, 0.5}) {
            Evaluation evaluation = new Evaluation();
            evaluation.f = f;
            stats.scores.add(java.util.Collections.singletonMap("All", evaluation));
        }
        System.out.println(stats.toString());
    }
}
"""


@needs_java
def test_without_corenlp_it_says_what_to_give(tmp_path):
    with pytest.raises(
        DDCapError, match=r"^needs CoreNLP 3\.6\.0; unpack .*zip and give its folder by --corenlp$"
    ):
        spice(CAPTIONS, REFERENCES, None)
    (tmp_path / JARS[0]).touch()
    with pytest.raises(DDCapError, match=rf"^{tmp_path}: has no {JARS[1]}; unpack "):
        spice(CAPTIONS, REFERENCES, tmp_path)
    with pytest.raises(DDCapError, match=rf": has no {JARS[0]} and no {JARS[1]}; unpack "):
        spice(CAPTIONS, REFERENCES, tmp_path / "nowhere")


def test_without_java_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DDCapError, match=r"^Java is not on the path; run: apt install default-jre-headless"):
        spice(CAPTIONS, REFERENCES, tmp_path)


@needs_java
def test_the_program_is_started_and_misses_corenlp_in_empty_jars(tmp_path):
    for jar in JARS:
        with zipfile.ZipFile(tmp_path / jar, "w") as archive:
            archive.writestr("empty", "")
    with pytest.raises(DDCapError) as caught:
        spice(CAPTIONS, REFERENCES, tmp_path)
    message = str(caught.value)
    assert (
        message.startswith("SPICE's Java program failed (")
        and "NoClassDefFoundError: edu/stanford" in message
    )
    assert "\n" not in message


@pytest.mark.parametrize("answer", [None, "{", "[{}]", '[{"image_id": "cat", "scores": {"All": {"f": 1}}}]'])
def test_an_answer_that_cannot_be_read_is_a_failure_of_the_program(tmp_path, fake_java, answer):
    write = "open(sys.argv[sys.argv.index('-out') + 1], 'w')"
    fake_java("" if answer is None else f"{write}.write({answer!r})")
    for jar in (*JARS, "nashorn-core.jar"):
        (tmp_path / jar).touch()
    with pytest.raises(DDCapError, match=r"SPICE's Java program wrote no scores \(.*\); check the jars in"):
        spice(CAPTIONS, REFERENCES, tmp_path)


@pytest.mark.skipif(shutil.which("javac") is None, reason="javac is not on the path: it compiles the check")
def test_the_mean_is_read_from_what_the_program_prints(tmp_path, monkeypatch):
    (tmp_path / "Show.java").write_text(PRINT_TWO_IMAGES)
    jar = str(Path(program.__file__).parent / program.SPICE_JAR)
    compile_it = ["javac", "-proc:none", "-cp", jar, "-d", str(tmp_path), str(tmp_path / "Show.java")]
    subprocess.run(compile_it, check=True, capture_output=True)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    command = java_command("-cp", f"{tmp_path}:{jar}", "edu.anu.spice.Show")
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=java_environment())
    assert read_printed_mean(done.stdout) == 0.375


def test_no_printed_score_is_an_error():
    with pytest.raises(DDCapError, match="printed no score"):
        read_printed_mean("SPICE evaluation took: 3 s")
