"""Names of folders, one by one."""

import os
import subprocess
import sys
import tracemalloc

import pytest

from ddcap.bulk.walk import SeenNames, walk


def names(paths, **options):
    problems = []
    found = [str(path) for path in walk(paths, on_problem=lambda *it: problems.append(it), **options)]
    return sorted(found), problems


@pytest.fixture
def tree(tmp_path):
    for name in ("a.jpg", "b/c.PNG", "b/d/e.webp", "b/notes.txt", "b/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_images_of_folders_and_files_by_name(tree):
    found, problems = names([tree / "b", tree / "gone.jpg"])
    assert found == [str(tree / name) for name in ("b/.hidden.jpg", "b/c.PNG", "b/d/e.webp", "gone.jpg")]
    assert not problems
    assert names([tree, tree]) == names([tree])  # a folder is entered once


def test_links_are_followed_or_skipped(tree):
    (tree / "link.jpg").symlink_to(tree / "a.jpg")
    (tree / "b" / "loop").symlink_to(tree)
    plain, _ = names([tree])
    assert names([tree], links="skip") == (plain, [])
    followed, problems = names([tree], links="follow")
    assert followed == sorted([*plain, str(tree / "link.jpg")]) and not problems
    refused, problems = names([tree], links="refuse")
    assert refused == plain and {path.name for path, _ in problems} == {"link.jpg", "loop"}
    assert names([tree / "link.jpg"], links="refuse")[0] == [str(tree / "link.jpg")]  # it is asked for


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_said(tree):
    (tree / "b").chmod(0)
    found, ((path, reason),) = names([tree])
    (tree / "b").chmod(0o755)
    assert found == [str(tree / "a.jpg")] and path == tree / "b" and "cannot be read" in reason


def test_a_folder_that_goes_away_is_said(tree, monkeypatch):
    def scandir(path, real=os.scandir):
        if str(path).endswith("d"):
            raise FileNotFoundError(2, "No such file or directory")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, ((path, _),) = names([tree])
    assert path == tree / "b" / "d" and len(found) == 3


def test_names_are_seen_once_and_take_little_memory():
    seen = SeenNames()
    tracemalloc.start()
    assert all(seen.add(f"folder/{number}.jpg") for number in range(200_000))
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory < 10_000_000
    assert len(seen) == 200_000 and not any(
        seen.add(f"folder/{number}.jpg") for number in range(0, 200_000, 999)
    )
    assert "folder/7.jpg" in seen and "folder/x.jpg" not in seen


WALK = """
import sys, tracemalloc
from ddcap.bulk.walk import walk
tracemalloc.start()
count = sum(1 for _ in walk([sys.argv[1]], on_problem=print))
print(count, tracemalloc.get_traced_memory()[1])
"""


def test_walking_many_names_takes_no_more_memory(tmp_path):
    for number in range(20_000):
        os.close(os.open(tmp_path / f"{number}.jpg", os.O_CREAT))
    # in a process of its own: other threads of this one take memory, too
    command = [sys.executable, "-c", WALK, str(tmp_path)]
    count, peak = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert count == 20_000 and peak < 3_000_000  # a list of their paths takes 8 MB
