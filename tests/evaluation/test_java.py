import shutil

import pytest

from ddcap.evaluation.tokenization import complaint, java_problem, java_version


def test_no_java_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = java_problem()
    assert problem is not None and "not on the path; run: apt install default-jre-headless" in problem
    assert java_version() == 0


def test_a_broken_java_counts_as_none(fake_java):
    fake_java("import sys; sys.exit('Unable to locate a Java Runtime.')", knows_version=False)
    problem = java_problem()
    assert problem is not None and "does not run (Unable to locate a Java Runtime.)" in problem


def test_java_and_its_version(fake_java):
    fake_java("")
    assert java_problem() is None
    assert java_version() == 17


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not on the path")
def test_the_real_java_has_a_version():
    assert java_problem() is None and java_version() >= 8


def test_the_complaint_is_the_line_with_the_error():
    trace = 'Picked up options\nException in thread "main" java.lang.Error: no\n\tat Main.main(Main.java)\n'
    assert complaint(trace) == 'Exception in thread "main" java.lang.Error: no'
    assert complaint("first\nsecond\n\n") == "second"
    assert complaint("") == "no message"
