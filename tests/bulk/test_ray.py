"""The same job over a Ray cluster of two local workers: the same rows, and none lost with a worker."""

import json
import os
import shutil
import tarfile

import psutil
import pytest
import torch

from ddcap.bulk.ray_engine import Actors, actors_on
from ddcap.bulk.remote import expand, read_image
from ddcap.bulk.rows import JsonLines
from ddcap.commands import main
from ddcap.errors import DataError, DDCapError, ImageError

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    ray = pytest.importorskip("ray")
    from ddcap.bulk.ray_engine import _quiet

    _quiet(ray)
    for attempt in range(3):
        try:
            # Ray believes in the GPU
            ray.init(
                num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
            break
        except Exception:  # Ray gives itself 30 seconds, which a busy machine may not have
            ray.shutdown()
            if attempt == 2:
                raise
    yield ray
    ray.shutdown()


@pytest.fixture
def album(tmp_path, small_photos):
    """Photographs, a broken one, and a tar of three more with a link in it."""
    folder = tmp_path / "album"
    folder.mkdir()
    for photo in small_photos[:3]:
        shutil.copy(photo, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for photo in small_photos[3:6]:
            tar.add(photo, photo.name)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return [str(folder), str(tmp_path / "00000.tar")]


def rows_of(path):
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["image"])


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_rows_are_those_of_the_local_engine(album, tmp_path, capsys):
    local, over, tars = tmp_path / "local.jsonl", tmp_path / "ray.jsonl", tmp_path / "captions"
    command = ["caption", *album, "--preset", "fast"]
    assert main([*command, "--out", str(local)]) == 1
    assert main([*command, "--out", str(over), "--engine", "ray", "--workers", "2"]) == 1
    assert "6 captioned, 2 failed, 0 already done" in capsys.readouterr().err
    expected = rows_of(local)
    assert len(expected) == 8 and rows_of(over) == expected
    # goes on: rows of a file and of a tar's member were lost
    lines = over.read_text().splitlines(keepends=True)
    lost = [next(n for n, line in enumerate(lines) if part in line) for part in ("album/", "00000.tar/")]
    over.write_text("".join(line for number, line in enumerate(lines) if number not in lost))
    assert main([*command, "--out", str(over), "--engine", "ray", "--workers", "1"]) == 1
    told = capsys.readouterr().err
    assert "2 failed" in told  # again
    assert all(row["error"] in told for row in expected if "error" in row)
    assert rows_of(over) == expected
    # a tar for a tar, named by an address
    address = f"file://{tmp_path}/*.tar"
    command = ["caption", address, "--preset", "fast", "--out", f"{tars}/", "--engine", "ray"]
    assert main([*command, "--workers", "1"]) == 1
    with tarfile.open(tars / "00000.tar") as tar:
        texts = [tar.extractfile(name).read().decode() for name in tar.getnames() if name.endswith(".txt")]
    assert texts == [
        row["caption"] for row in expected if "00000.tar/" in row["image"] and "error" not in row
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_loses_nothing(small_photos, tmp_path):
    from ddcap.bulk.ray_engine import caption_on_ray

    folder, killed = tmp_path / "album", []
    folder.mkdir()
    for number in range(24):
        shutil.copy(small_photos[number % len(small_photos)], folder / f"{number}.jpg")

    def kill(progress):
        if progress.captioned == 3:
            workers = [one for one in psutil.Process().children(recursive=True) if _captions(one)]
            workers[0].kill()
            killed.append(workers[0].pid)

    output = JsonLines(tmp_path / "c.jsonl", overwrite=False)
    model = ("default", "cpu", "auto", "auto")
    asked = {"output": output, "unit": 2, "workers": 2, "preset": "fast", "on_progress": kill}
    progress = caption_on_ray(model, [str(folder)], **asked)
    output.close()
    assert killed and not psutil.pid_exists(killed[0])
    images = [row["image"] for row in rows_of(tmp_path / "c.jsonl")]
    assert images == sorted(str(path) for path in folder.iterdir())
    assert progress.captioned == 24 and progress.failed == 0


class Environment:
    """An actor that tells where it runs."""

    def __init__(self, name):
        self.name = name

    def __call__(self, batch):
        import pyarrow
        import ray

        resources = ray.get_runtime_context().get_assigned_resources()
        told = {"name": self.name, "process": os.getpid(), "resources": resources}
        told["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        return pyarrow.table({"captions": [json.dumps(told)] * len(batch)})


@pytest.mark.slow
def test_an_actor_on_a_gpu_has_it_and_the_cpus_that_read_for_it(cluster):
    from ddcap.bulk.ray_engine import _on_actors

    actors = actors_on(cluster.nodes(), "cuda")
    assert actors == Actors(most=1, cpus=2, gpus=1)
    units = [{"number": number} for number in range(3)]
    found = list(_on_actors(cluster, units, Environment, ["mine"], actors, None))
    assert len({one["process"] for one in found}) == 1  # the one GPU has one actor
    assert all((one["name"], one["gpus"]) == ("mine", "0") for one in found), found
    assert all(one["resources"] == {"CPU": 2.0, "GPU": 1.0} for one in found), found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_actor_without_cuda_says_so(small_photos, tmp_path, capsys):
    out = tmp_path / "c.jsonl"
    command = ["caption", str(small_photos[0]), "--out", str(out), "--engine", "ray", "--device", "cuda"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "device 'cuda': not available here" in told and "use cpu" in told and told.count("\n") == 1
    assert rows_of(out) == []  # the CPU does not step in


def test_as_many_actors_as_the_cluster_has_room_for():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16.0}},
        {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 12.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 96.0, "GPU": 8.0}},
    ]
    assert actors_on(nodes, "cpu") == Actors(92, 1, 0)
    assert actors_on(nodes, "cuda") == Actors(5, 12, 1)
    with pytest.raises(DDCapError, match=r"--device cuda: the Ray cluster has no GPU; .*--device cpu"):
        actors_on(nodes[:1], "cuda")


def _captions(process):
    try:
        return "UnitActor" in " ".join(process.cmdline()) or "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_remote_addresses_are_listed(tmp_path, small_photos):
    for name in ("a/x.jpg", "a/b/y.png", "a/b/notes.txt", "a/00000.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small_photos[0], tmp_path / name)
    root = f"file://{tmp_path}"
    assert sorted(expand(f"{root}/a")) == [f"{root}/a/{name}" for name in ("00000.tar", "b/y.png", "x.jpg")]
    assert list(expand(f"{root}/a/*.tar")) == [f"{root}/a/00000.tar"]
    assert list(expand(f"{root}/*/b/*")) == [f"{root}/a/b/y.png"]
    assert list(expand(f"{root}/a/x.jpg")) == [f"{root}/a/x.jpg"]
    assert read_image(f"{root}/a/x.jpg").content == small_photos[0].read_bytes()
    for url in (f"{root}/a/*.gif", f"{root}/gone", "nothing://x/y"):
        with pytest.raises(DataError, match="check"):
            list(expand(url))
    with pytest.raises(ImageError, match=r"gone\.jpg: cannot be read"):
        read_image(f"{root}/gone.jpg")


def test_unsupported_options_are_refused(small_photos, tmp_path, capsys):
    photo, out = str(small_photos[0]), ["--out", f"{tmp_path}/c.jsonl"]
    for words, reason in (
        ([photo, "--engine", "ray"], "writes captions to files only"),
        (["s3://bucket/x.tar", *out], "only --engine ray reads URLs"),
        (["file:///gone", *out, "--engine", "ray"], "cannot be listed"),
        ([photo, *out, "--engine", "ray", "--min-words", "30"], "take 31 tokens"),
    ):
        assert main(["caption", *words]) == 1
        told = capsys.readouterr().err
        assert reason in told and told.count("\n") == 1, told


def test_without_ray_it_is_said_what_to_install(small_photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    words = ["caption", str(small_photos[0]), "--out", f"{tmp_path}/c.jsonl", "--engine", "ray"]
    assert main(words) == 1
    assert "pip install 'ddcap[ray]'" in capsys.readouterr().err
