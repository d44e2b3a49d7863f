"""One job at a time on an output, and a job that goes on is asked for the same captions."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ddcap.bulk.claim import Claim
from ddcap.bulk.outputs import open_output
from ddcap.commands import main
from ddcap.errors import DataError

HOLD = """
import sys, time
from ddcap.bulk.outputs import open_output
output = open_output(sys.argv[1])
output.begin({})
output.write({"image": "a.jpg", "caption": "a dog"})
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_second_job_is_refused_while_the_first_lives(tmp_path, capsys, kind, small_photos):
    out = tmp_path / f"c.{kind}"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"held\n"
    (tmp_path / "link").symlink_to(tmp_path)
    before = out.read_bytes() if out.is_file() else sorted(out.iterdir())
    for name in (out, tmp_path / "link" / out.name):  # by any spelling, and to begin anew, too
        for more in ([], ["--overwrite"]):
            assert main(["caption", str(small_photos[0]), "--out", str(name), *more]) == 1
            told = capsys.readouterr().err
            assert f"process {first.pid} on " in told and "is writing to it" in told and told.count("\n") == 1
    assert before == (out.read_bytes() if out.is_file() else sorted(out.iterdir()))
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    again = open_output(out)  # the lock ended with the process
    assert ("a.jpg" in again.done) == (kind != "parquet")
    again.close()


def test_other_options_are_refused_by_name(tmp_path):
    def job(overwrite=False, **options):
        output = open_output(tmp_path / "c.jsonl", overwrite=overwrite)
        try:
            output.begin(options)
            output.write({"image": str(options), "caption": "a dog"})
        finally:
            output.close()

    job(max_chars=20, ban=("man", "boy"))
    job(max_chars=20, ban=["man", "boy"], num=1, seed=0, batch_size=7, lengths=None, model="default")
    before = (tmp_path / "c.jsonl").read_bytes()
    with pytest.raises(
        DataError,
        match=r"--max-chars: 20 before, not given now; --ban: man, boy before, man now\); give the same "
        "options, choose another file, or start over with --overwrite",
    ):
        job(ban=["man"])
    assert (tmp_path / "c.jsonl").read_bytes() == before
    job(overwrite=True, ban=["man"])
    job(ban=["man"])
    (tmp_path / "c.jsonl").unlink()
    job()  # there is nothing to go on with


def test_a_refused_job_changes_nothing(tmp_path):
    claim = Claim(tmp_path, goes_on=False)
    claim.agree({"ban": "man"})
    claim.release()
    before = json.loads((tmp_path / ".ddcap-job").read_bytes())
    again = Claim(tmp_path, goes_on=True)
    with pytest.raises(DataError, match="choose another folder"):
        again.agree({})
    again.release()
    after = json.loads((tmp_path / ".ddcap-job").read_bytes())
    assert (after["options"], after["closed"]) == (before["options"], True)
    Claim(tmp_path / "new.csv", goes_on=False).release()
    assert os.listdir(tmp_path) == [".ddcap-job"]


def test_a_file_of_the_user_with_its_name_stays(tmp_path):
    (tmp_path / ".c.jsonl.ddcap-job").write_text("my own")
    with pytest.raises(DataError, match="move it away"):
        open_output(tmp_path / "c.jsonl")
    assert (tmp_path / ".c.jsonl.ddcap-job").read_text() == "my own"


def test_a_killed_job_is_recognised(tmp_path):
    claim = Claim(tmp_path, goes_on=False)
    assert claim.is_new and not claim.was_killed
    claim.agree({})
    os.close(claim._file.fileno())  # as the system closes the files of a process that was killed
    again = Claim(tmp_path, goes_on=True)
    assert again.was_killed and not again.is_new
    again.agree({})
    again.release()
    last = Claim(tmp_path, goes_on=True)
    assert not last.was_killed
    last.release()


def test_a_torn_job_file_is_one_line(tmp_path):
    claim = Claim(tmp_path, goes_on=False)
    claim.agree({"ban": ["man"] * 100})
    claim.release()
    path = tmp_path / ".ddcap-job"
    path.write_bytes(b'{"ddcap": "0", "folder": "/", "options": null}\n' + path.read_bytes()[50:])
    claim = Claim(tmp_path, goes_on=True)
    assert claim.base == "/"
    claim.release()
    assert path.read_bytes().count(b"\n") == 1
