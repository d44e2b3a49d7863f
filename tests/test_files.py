import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddcap.data.shard_files import NAME, read_manifest, write_manifest
from ddcap.files import remove_unfinished, replacing, replacing_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("früher", "später"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text and names(tmp_path) == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "a folder")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "a.txt", "no folder")


def test_the_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    """A power cut after a rename must not leave an empty file under the good name."""
    events = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle):
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        real_sync(handle)

    def replace(old, new):
        events.append(("replace", str(old)))
        real_replace(old, new)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a.txt", "text")
    (_, synced), (_, replaced), last = events
    assert synced == replaced and last == ("sync", str(tmp_path))
    events.clear()
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "inside.txt").write_text("text")
    assert [kind for kind, _ in events] == ["sync", "sync", "replace", "sync"]
    assert events[0] == ("sync", str(temporary / "inside.txt"))


def test_permissions_are_those_of_any_file_or_of_the_one_before(tmp_path):
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    (tmp_path / "a").chmod(0o640)
    write_text(tmp_path / "a", "new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(pipe.read_text)
        write_text(pipe, "through")
    assert read.result() == "through" and pipe.is_fifo()


def test_standard_output_can_be_named(tmp_path):
    code = "from ddcap.files import write_text; write_text('/dev/stdout', 'one'); print('two')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert "two" in (tmp_path / "out").read_text()  # a replaced file would not get what follows
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert piped.stdout == "onetwo\n"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "runs" / "folder"
    for text in ("old", "new"):
        with replacing_folder(path) as temporary:
            (temporary / f"{text}.txt").write_text(text)
        assert names(path) == [f"{text}.txt"] and names(path.parent) == ["folder"]
    with pytest.raises(RuntimeError), replacing_folder(path) as temporary:
        (temporary / "half.txt").write_text("half")
        raise RuntimeError
    assert names(path) == ["new.txt"] and names(path.parent) == ["folder"]


def test_writers_of_one_file_do_not_write_into_each_others(tmp_path):
    """As many write one manifest, a reader finds that of one of them whole, and no writer fails."""
    contents = {f"{number}.tar": [number] * (2000 * number) for number in range(1, 7)}

    def write(name):
        for _ in range(15):
            write_manifest(tmp_path, {name: contents[name]})

    write("1.tar")
    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write, name) for name in contents]
        while not all(writer.done() for writer in writers):
            (shard,) = read_manifest(str(tmp_path))
            assert shard.captions.tolist() == contents[shard.url.rpartition("/")[2]]
    for writer in writers:
        writer.result()
    assert names(tmp_path) == [NAME]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    (tmp_path / ".hidden").write_text("somebody's")
    code = (
        "import sys, time; from ddcap.files import replacing\n"
        f"with replacing({str(path)!r}) as temporary:\n"
        "    temporary.write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old" and len(names(tmp_path)) == 3
    remove_unfinished(tmp_path, older_than=60)  # may still be at work
    assert len(names(tmp_path)) == 3
    (left,) = (one for one in tmp_path.iterdir() if one.name not in ("a.txt", ".hidden"))
    os.utime(left, (time.time() - 100,) * 2)
    remove_unfinished(tmp_path, older_than=60)
    assert names(tmp_path) == [".hidden", "a.txt"]
    remove_unfinished(tmp_path / "none", older_than=0)
