"""Random histories of jobs and of their user: no byte of the user's changes, and no caption goes away.

Files of the user lie beside and under every output. Jobs are killed by the operating system, at a moment or
in the middle of a write; two run at once; options, spellings and images change. Every job is a process.

A model would take minutes, and what it writes does not matter here: captions are made of an image's bytes.
"""

import csv
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from PIL import Image

from ddcap.bulk.outputs import open_output
from ddcap.bulk.run import caption_files
from ddcap.bulk.sidecars import DescribedCopies, Sidecars
from ddcap.bulk.tar_output import WITHOUT_CAPTION, TarOutput
from ddcap.decoding.caption import Caption, ImageResult
from ddcap.errors import DDCapError

parquet = pytest.importorskip("pyarrow.parquet")
table = pytest.importorskip("pyarrow").table
pytest.importorskip("exiv2")
if not hasattr(os, "fork"):
    pytest.skip("jobs are processes made by fork", allow_module_level=True)

IMAGES = [b"a.jpg", b"c.jpg", b"c.png", b"more/a.jpg", "caf\u00e9 \U0001f408.jpg".encode()]
IMAGES += [b'\xff,"odd"\n.jpg', b"x%FF.jpg", b"l" * 240 + b".jpg", b"more.tar/a.jpg"]
FILES = ["rows.jsonl", "rows.csv"]
OUTPUTS = [*FILES, "rows.parquet", "tars/", None]
STRANGE = [
    b'{"my":"precious config"}',
    b'{"image": "a.jpg", "label": 3}\n',
    b"a,b",
    b"a,b\n1,2\n",
    b"dear diary\n",
]
STRANGE += [b'image,caption\n"no end', b"\xff\xfe\x00", b'[\n{"image": "a", "caption": "b"}]\n']
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"%s/>
</rdf:RDF></x:xmpmeta>"""
PACKETS = [XMP % b"", XMP % b' xmlns:dc="http://purl.org/dc/elements/1.1/" dc:description="mine"', b"no xmp"]


IN_A_WRITE = st.tuples(st.just("in a write"), st.integers(0, 3000))


class BytesCaptioner:
    """In place of a model: a caption is the hash of an image's bytes and of what is asked for."""

    def caption_each(self, images, **asked):
        for image in images:
            content = image.content if hasattr(image, "content") else Path(image).read_bytes()
            if content.startswith(b"broken"):
                yield ImageResult(image, (), f"{image}: damaged or truncated; copy it again")
                continue
            given = json.dumps(asked, sort_keys=True).encode()
            texts = [
                hashlib.sha256(content + given + bytes([n])).hexdigest() for n in range(asked.get("num", 1))
            ]
            captions = (Caption(f"a {text}, dog", (), (), 1, 0.0, None) for text in texts)
            yield ImageResult(image, tuple(captions), None)


def files_below(root):
    """Content of every file, but for what a job notes about itself and what a kill has left unfinished."""
    found = {}
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = os.path.join(folder, name)
            if not (name.endswith((b".ddcap-job", b".writing")) or os.path.islink(path)):
                found[path] = Path(os.fsdecode(path)).read_bytes()
    return found


def rows_of(root, out):
    """(image, caption, error) of every whole row, read without the code under test."""
    path = Path(root) / out
    rows = []
    try:
        if out == "rows.jsonl":
            rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        elif out == "rows.csv":
            content = path.read_bytes().decode("utf-8", "surrogateescape")
            whole = content[: content.rindex("\r\n") + 2] if "\r\n" in content else ""
            while whole.count('"') % 2:
                whole = whole[: whole[:-2].rindex("\r\n") + 2]
            rows = list(csv.DictReader(io.StringIO(whole, newline="")))
        elif out == "rows.parquet":
            for part in path.glob("part-*.parquet"):
                rows += parquet.read_table(part).to_pylist()
        else:
            rows = [json.loads(line) for line in (path / WITHOUT_CAPTION).read_bytes().split(b"\n")[:-1]]
            for one in (path / "0.tar", path / ".0.tar.growing"):
                rows += (
                    samples(one)
                    if one.exists() and not (one.suffix == ".growing" and rows_in_tar(path))
                    else []
                )
    except FileNotFoundError:
        return []
    return [(key_of(row["image"]), row.get("caption") or None, row.get("error") or None) for row in rows]


def rows_in_tar(folder):
    return (folder / "0.tar").exists() and not (folder / ".0.tar.growing").exists()


def samples(path):
    found = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found.append(json.loads(tar.extractfile(member).read()))
    except (tarfile.TarError, ValueError, EOFError):
        pass  # its end is torn
    return found


def key_of(name):
    if name.startswith("file://"):
        from urllib.parse import unquote_to_bytes

        name = os.fsdecode(unquote_to_bytes(name.removeprefix("file://")))
    folder, own = os.path.split(name)
    return os.path.join(os.path.realpath(folder), own)


class Histories(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.before = os.getcwd()
        self.root = Path(os.path.realpath(tempfile.mkdtemp()))
        os.chdir(self.root)
        for folder in ("album/more", "album/more.tar", "shards", "copies"):
            Path(folder).mkdir(parents=True)
        os.symlink("album", "link")
        self.captions = {out: {} for out in OUTPUTS}  # what each output has had, and must have
        self.theirs = set()  # outputs that the user has written or written to

    def teardown(self):
        os.chdir(self.before)
        shutil.rmtree(os.fsencode(self.root))

    # What the user does.

    @initialize(
        broken=st.sets(st.sampled_from(IMAGES), max_size=2),
        mine=st.sets(st.tuples(st.sampled_from(IMAGES), st.sampled_from(["txt", "xmp", "copy"])), min_size=4),
    )
    def take_images(self, broken, mine):
        for name in IMAGES:
            self.put(name, name in broken)
        for name, kind in mine:
            self.put_beside(name, kind, 0)
        with tarfile.open("shards/0.tar", "w") as tar:
            for number, key in enumerate(("a", "b", "a/b")):
                content = self.photo(number)
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            member = tarfile.TarInfo("a.png")  # another one of a key
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    def photo(self, number):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (number % 256, 80, 120)).save(file, "JPEG")
        return file.getvalue()

    @rule(name=st.sampled_from(IMAGES), is_broken=st.booleans())
    def put(self, name, is_broken):
        path = Path("album") / os.fsdecode(name)
        if not path.exists() or path.read_bytes().startswith(b"broken"):
            path.write_bytes(b"broken" if is_broken else self.photo(len(name) + IMAGES.index(name)))

    @rule(
        names=st.sets(st.sampled_from(IMAGES), min_size=1, max_size=4),
        kind=st.sampled_from(["txt", "xmp", "copy"]),
        which=st.integers(0, 2),
    )
    def put_files_of_mine_beside(self, names, kind, which):
        for name in names:
            self.put_beside(name, kind, which)

    def put_beside(self, name, kind, which):
        path = Path("album") / os.fsdecode(name)
        path = {
            "txt": path.with_suffix(".txt"),
            "xmp": path.with_name(path.name + ".xmp"),
            "copy": Path("copies") / os.fsdecode(name),
        }[kind]
        path.parent.mkdir(exist_ok=True)
        content = PACKETS[which] if kind == "xmp" else [b"mine", b"", b"\xffmine\n"][which]
        if not os.path.lexists(path) and len(os.fsencode(path.name)) < 250:
            path.write_bytes(content)

    @rule(out=st.sampled_from(FILES), content=st.sampled_from(STRANGE))
    def put_a_file_of_mine_where_rows_go(self, out, content):
        if not Path(out).exists():
            Path(out).write_bytes(content)
            self.theirs.add(out)

    @rule(out=st.sampled_from(FILES), note=st.sampled_from([b"my note", b"my note\n", b'"my note\n']))
    def add_to_rows(self, out, note):
        record = Path(f".{out}.ddcap-job")
        was_closed = record.exists() and json.loads(record.read_bytes())["closed"]
        if Path(out).exists() and was_closed and Path(out).stat().st_size:
            with Path(out).open("ab") as file:
                file.write(note)
            self.theirs.add(out)

    @rule(name=st.sampled_from(["part-00000.parquet", "part-x.parquet", "mine.parquet", "notes.txt"]))
    def put_a_file_of_mine_into_the_folder_of_parts(self, name):
        path = Path("rows.parquet") / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            parquet.write_table(table({"mine": [1]}), path)
            self.theirs |= {"rows.parquet"} if name != "notes.txt" else set()

    @rule(name=st.sampled_from(["0.tar", ".0.tar.growing", "other.tar", WITHOUT_CAPTION]))
    def put_a_file_of_mine_into_the_folder_of_tars(self, name):
        path = Path("tars") / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() and (name == "other.tar" or not any(path.parent.iterdir())):
            with tarfile.open(path, "w") as tar:
                member = tarfile.TarInfo("a.json")
                member.size = 2
                tar.addfile(member, io.BytesIO(b"{}"))
            self.theirs |= {"tars/"} if name != "other.tar" else set()

    # What jobs do.

    def job(self, out, beside, given, overwrite, asked, death=None, hold=None):
        """In a process: what it reports, or None if it was killed."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                told = self.run_job(out, beside, given, overwrite, asked, death, hold)
            except DDCapError as error:
                told = {"refused": str(error)}
            except OSError as error:
                told = {"refused": f"{error!r}"}
            except BaseException as error:
                told = {"crashed": f"{error!r}"}
            os.write(writer, json.dumps(told).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            told = file.read()
        os.waitpid(child, 0)
        return json.loads(told) if told else None

    def run_job(self, out, beside, given, overwrite, asked, death, hold):
        if death is not None and death[0] == "in a write":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            size = os.path.getsize(out) if out in FILES and os.path.exists(out) else 0
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + death[1], size + death[1]))
        failures, count = [], 0

        def on_progress(_):
            nonlocal count
            count += 1
            if death == ("after", count):
                os.kill(os.getpid(), signal.SIGKILL)
            if hold is not None and count == 1:
                hold()

        paths = ["shards/0.tar"] if out == "tars/" else [given]
        beside = [] if out == "tars/" else beside
        made = [DescribedCopies(Path("copies"), paths) if one == "copy" else Sidecars(one) for one in beside]
        if out == "tars/":
            output = TarOutput(Path(out), paths, overwrite=overwrite)
        else:
            output = None if out is None else open_output(out, overwrite=overwrite)
        try:
            progress = caption_files(
                BytesCaptioner(),
                paths,
                output=output,
                beside=made,
                overwrite=overwrite,
                on_progress=on_progress,
                on_failure=failures.append,
                **asked,
            )
        finally:
            if output is not None:
                output.close()
        return {"captioned": progress.captioned, "failed": progress.failed, "failures": failures}

    @rule(
        out=st.sampled_from(OUTPUTS),
        beside=st.sampled_from([[], ["txt"], ["txt"], ["xmp"], ["copy"], ["txt", "copy"]]),
        given=st.sampled_from(["album", "./album/", "link", "ABSOLUTE"]),
        overwrite=st.sampled_from([False] * 5 + [True]),
        asked=st.sampled_from([{}] * 5 + [{"ban": ["man"]}, {"num": 3}]),
        deaths=st.lists(
            st.none() | st.tuples(st.just("after"), st.integers(1, 9)) | IN_A_WRITE, min_size=1, max_size=4
        ),
    )
    def run_again_and_again(self, out, beside, given, overwrite, asked, deaths):
        for death in deaths:
            self.run(out, beside, given, overwrite, asked, death)
            overwrite = False

    def run(self, out, beside, given, overwrite, asked, death):
        beside = [] if out == "tars/" else beside
        if out is None and not beside:
            return
        given = str(self.root / "album") if given == "ABSOLUTE" else given
        before = files_below(self.root)
        told = self.job(out, beside, given, overwrite, asked, death)
        event("killed" if told is None else "refused" if "refused" in told else "finished")
        self.compare(before, out, beside, given, overwrite, told)

    @rule(out=st.sampled_from(OUTPUTS[:4]))
    def run_two_at_once(self, out):
        before, second = files_below(self.root), []
        reader, writer = os.pipe()

        def hold():  # in the first one's process, in the middle of its work
            told = self.job(out, [], str(self.root / "link"), False, {})
            os.write(writer, json.dumps(told).encode())

        told = self.job(out, [], "album", False, {}, hold=hold)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            second = file.read()
        if second:
            assert "is writing to it" in json.loads(second)["refused"]
        self.compare(before, out, [], "album", False, told)

    # What must be true.

    def compare(self, before, out, beside, given, overwrite, told):
        assert told is None or "crashed" not in told, told
        after = files_below(self.root)
        is_refused = told is not None and "refused" in told
        if overwrite and not is_refused and told is not None and out in FILES:
            self.theirs.discard(out)
        may_change = set() if is_refused else self.may_change(out, beside, overwrite)
        for path, content in before.items():
            if path in may_change or after.get(path) == content:
                continue
            assert path in after, f"{path} is gone, {told}"
            assert path.endswith(b".xmp") and "xmp" in beside, f"{path} has changed, {told}"
            self.check_added(content, after[path], overwrite)
        if out is not None and out not in self.theirs:
            if overwrite and not is_refused:
                self.captions[out] = {}
            self.check_rows(out)
        if told is not None and not is_refused:
            self.check_complete(out, beside, given, told)

    def may_change(self, out, beside, overwrite):
        names = (
            {os.fsencode(self.root / str(out))}
            if out in FILES and (out not in self.theirs or overwrite)
            else set()
        )
        if out in ("rows.parquet", "tars/") and out not in self.theirs:
            ours = ("part-", "0.tar", ".0.tar", "without")
            found = [path for path in Path(out).iterdir()] if Path(out).exists() else []
            names |= {os.fsencode(self.root / path) for path in found if path.name.startswith(ours)}
            names |= {os.fsencode(self.root / out / name) for name in ("0.tar", ".0.tar.growing")}
            names |= {os.fsencode(self.root / out / f"part-{n:05}.parquet") for n in range(50)}
        if overwrite:
            for name in IMAGES:
                path = self.root / "album" / os.fsdecode(name)
                names |= {os.fsencode(path.with_suffix(".txt"))} if "txt" in beside else set()
                names |= (
                    {os.fsencode(self.root / "copies" / os.fsdecode(name))} if "copy" in beside else set()
                )
        return names

    def check_added(self, old, new, overwrite):
        """XMP: something was put in, and the rest is as it was; over a caption only with --overwrite."""
        start = next(
            (n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
        )
        rest = old[start:]
        if not overwrite:
            assert new.endswith(rest) and b"dc:description" in new[start : len(new) - len(rest)]
        else:
            assert (old[:start] == new[:start] and b"Rating" in new) or b"Rating" not in old

    def check_rows(self, out):
        rows = rows_of(self.root, out)
        found = {key: caption for key, caption, error in rows if caption and not error}
        for key, caption in self.captions[out].items():
            assert found.get(key) == caption, f"{key} in {out}"
        self.captions[out].update(found)
        assert all(not (caption and error) for _, caption, error in rows)

    def check_complete(self, out, beside, given, told):
        assert told["failed"] == len(told["failures"])
        album = self.root / "album"
        images = [path for path in (album / os.fsdecode(name) for name in IMAGES) if path.exists()]
        failed = {path for path in images if self.is_told(path, given, told)}
        assert {path for path in images if path.read_bytes() == b"broken"} <= failed or out in (
            "tars/",
            None,
        )
        if out is not None and out not in self.theirs:
            rows = rows_of(self.root, out)
            keys = [key for key, _, _ in rows]
            assert len(keys) == len(set(keys)), "an image has two rows"
            errors = {key for key, _, error in rows if error}
            if out == "tars/":
                assert errors == {str(self.root / "shards/0.tar/a.png")} and told["failed"] == 1
            else:
                assert set(keys) == {str(path) for path in images}
                assert errors == {str(path) for path in failed}
        for path in set(images) - failed if out is None else ():
            places = {"txt": path.with_suffix(".txt"), "xmp": Path(f"{path}.xmp")}
            places["copy"] = self.root / "copies" / path.relative_to(self.root / "album")
            assert all(os.path.lexists(places[one]) for one in beside)

    def is_told(self, path, given, told):
        name = str(Path(given) / path.relative_to(self.root / "album"))
        return any(line.startswith(f"{name}:") for line in told["failures"])

    @invariant()
    def originals_are_there(self):
        assert all(path.stat().st_size for path in Path("album").rglob("*.*g"))


@pytest.mark.parametrize("histories", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_no_byte_of_the_users_changes_and_no_caption_goes_away(histories):
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    given = int(os.environ.get("DDCAP_HISTORIES", histories))
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=given,
            stateful_step_count=15,
            deadline=None,
            database=None,
            suppress_health_check=checks,
        ),
    )
