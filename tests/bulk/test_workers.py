"""Several processes of one machine: the rows of one process, in its order, whatever ends meanwhile."""

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from ddcap import Captioner, machine
from ddcap.bulk.rows import JsonLines
from ddcap.bulk.run import caption_files
from ddcap.bulk.workers import Workers, own_workers
from ddcap.commands import main
from ddcap.errors import CheckpointError, DDCapError, RecipeError

MODEL = ("default", "cpu", "auto", "auto")


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


@pytest.fixture
def album(tmp_path, small_photos):
    """Photographs, a broken one among them, and a tar of three more with a link in it."""
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(10):
        shutil.copy(small_photos[number % len(small_photos)], folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for photo in small_photos[:3]:
            tar.add(photo, photo.name)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return [folder, tmp_path / "00000.tar"]


def caption(captioner, paths, out, **how):
    output = JsonLines(out, overwrite=False)
    try:
        return caption_files(captioner, paths, output=output, **{"preset": "fast", **how})
    finally:
        output.close()


def rows_of(out):
    """Rows in their order; what is refused in a tar file is told as soon as it is read."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return sorted(rows, key=lambda row: "link.jpg" in row["image"])


def names_of(out):
    return [row["image"] for row in rows_of(out)]


@pytest.mark.parametrize(
    "asked", [{}, pytest.param({"temperature": 1.0, "num": 2, "batch_size": 2}, marks=pytest.mark.slow)]
)
def test_the_rows_are_those_of_one_process(default, album, asked, tmp_path):
    told, seen = {1: [], 2: []}, []

    def look(_):
        for child in multiprocessing.active_children():
            seen.append(psutil.Process(child.pid).environ().get("OMP_NUM_THREADS"))

    caption(default, album, tmp_path / "one.jsonl", on_failure=told[1].append, **asked)
    before = os.environ["OMP_NUM_THREADS"]
    workers = Workers(MODEL, 2, unit=4)
    how = {"workers": workers, "on_failure": told[2].append, "on_progress": look, **asked}
    progress = caption(default, album, tmp_path / "two.jsonl", **how)
    assert rows_of(tmp_path / "two.jsonl") == rows_of(tmp_path / "one.jsonl")
    assert (progress.captioned, progress.failed) == (13, 2)
    assert sorted(told[1]) == sorted(told[2]) and len(told[1]) == 2
    assert {*seen} - {None} == {str(workers.threads)}  # none yet of one that is just being started
    assert os.environ["OMP_NUM_THREADS"] == before
    assert multiprocessing.active_children() == []
    again = caption(default, album, tmp_path / "two.jsonl", workers=workers, **asked)
    assert (again.captioned, again.failed, again.skipped) == (0, 2, 13)


def test_a_killed_worker_loses_nothing(default, album, tmp_path):
    killed = []

    def kill(progress):
        if progress.captioned in (1, 6):
            killed.extend(child for child in multiprocessing.active_children() if not child.kill())

    caption(default, album, tmp_path / "one.jsonl")
    progress = caption(
        default, album, tmp_path / "two.jsonl", workers=Workers(MODEL, 2, unit=4), on_progress=kill
    )
    assert killed and (progress.captioned, progress.failed) == (13, 2)
    assert rows_of(tmp_path / "two.jsonl") == rows_of(tmp_path / "one.jsonl")


@pytest.mark.slow
def test_an_image_with_which_workers_end_is_one_row(small_photos, tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "class Deadly:\n"
        "    def __str__(self):\n"
        "        return 'deadly.jpg'\n"
        "    def read(self):\n"
        "        with open('deaths', 'a') as file:\n"
        "            file.write('x')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    images = [*map(Path, small_photos[:6])]
    images[2] = importlib.import_module("deadly").Deadly()
    rows = list(Workers(MODEL, 2, unit=4).rows(images, {"preset": "fast"}, None, batch_size=4))
    assert [source for source, _ in rows] == images
    assert all(("error" in row) == (source is images[2]) for source, row in rows)
    assert rows[2][1]["error"] == (
        "deadly.jpg: the process that captioned it ended (killed by SIGKILL), and so did the next one; "
        "free memory, or leave the image out"
    )
    assert (tmp_path / "deaths").read_text() == "xxx"  # twice among others, then alone


def test_what_workers_refuse_is_raised_here(small_photos):
    images = [Path(photo) for photo in small_photos[:2]]
    with pytest.raises(CheckpointError, match="/gone"):
        list(Workers(("/gone/model", "cpu", "auto", "auto"), 1).rows(images, {}, None, batch_size=1))
    with pytest.raises(RecipeError, match="steps"):
        list(Workers(MODEL, 1).rows(images, {"steps": -1}, None, batch_size=1))
    assert multiprocessing.active_children() == []


def test_workers_that_never_come_up_end_the_job(small_photos):
    is_over = threading.Event()

    def kill():
        while not is_over.wait(0.02):
            for child in multiprocessing.active_children():
                child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(DDCapError, match=r"--workers 1: 3 processes in a row .*SIGKILL.*fewer --workers"):
            list(Workers(MODEL, 1).rows([Path(small_photos[0])], {}, None, batch_size=1))
    finally:
        is_over.set()
        killer.join()


def test_a_small_job_starts_no_process(default, small_photos, tmp_path):
    def look(_):
        assert multiprocessing.active_children() == []

    progress = caption(
        default, small_photos[:4], tmp_path / "c.jsonl", workers=Workers(MODEL, 2, unit=4), on_progress=look
    )
    assert progress.captioned == 4


@pytest.mark.parametrize(
    ("cores", "memory", "device", "count"),
    [
        (1, 64, "cpu", 1),
        (2, 64, "cpu", 2),
        (3, 64, "cpu", 3),
        (16, 2, "cpu", 2),
        (2, 0, "cpu", 1),
        (64, 512, "cpu", 64),
        (64, 512, "cuda", 1),
    ],
)
def test_as_many_workers_as_cores(cores, memory, device, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    monkeypatch.setattr("ddcap.bulk.workers.own_memory", lambda: memory * 10**9)
    assert own_workers(device) == count
    assert Workers(MODEL, 2).threads == max(1, cores // 2)


def test_a_container_has_fewer_cores_and_less_memory(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert machine.own_cores() == 64 and machine.own_memory() > 2**30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.own_cores() == 64 and machine.own_memory() > 2**30
    (tmp_path / "cpu.max").write_text("450000 100000\n")
    (tmp_path / "memory.max").write_text("2400000000\n")
    assert (machine.own_cores(), machine.own_memory()) == (4, 2_400_000_000)
    assert own_workers("cpu") == 3  # the fourth part of the memory is for the process that writes
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.own_cores() == 1


def test_numbers_that_cannot_be_are_refused(small_photos, tmp_path, capsys):
    photo = str(small_photos[0])
    for words, reason in (
        (["--workers", "2"], "--workers: works with files only"),
        (["--workers", "0", "--out", f"{tmp_path}/c.jsonl"], "--workers=0: must be at least 1"),
    ):
        assert main(["caption", photo, *words]) == 1
        told = capsys.readouterr().err
        assert reason in told and told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_interrupted_or_killed_the_workers_end_and_the_next_job_goes_on(small_photos, tmp_path):
    folder, out = tmp_path / "many", tmp_path / "captions.jsonl"
    folder.mkdir()
    for number in range(96):
        shutil.copy(small_photos[number % len(small_photos)], folder / f"{number}.jpg")
    command = [sys.executable, "-m", "ddcap", "caption", str(folder), "--out", str(out), "--preset", "fast"]
    command += ["--workers", "2"]
    for wanted, number in ((16, signal.SIGINT), (40, signal.SIGKILL)):
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # what a shell starts in the background ignores it
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 120
        while (out.read_bytes().count(b"\n") if out.exists() else 0) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        assert len(workers) >= 2 and psutil.wait_procs(workers, timeout=60)[1] == []
        if number == signal.SIGINT:
            assert process.returncode == 130 and told == "ddcap: interrupted\n"
    assert out.read_bytes().count(b"\n") < 96
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0 and "0 failed" in last.stderr
    assert sorted(names_of(out)) == sorted(str(path) for path in folder.iterdir())
