"""What the documents promise: commands run, links lead somewhere, examples run."""

import glob
import importlib.metadata
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcap import Captioner
from ddcap.commands import build_parser, main
from ddcap.data.shard_files import write_shard
from ddcap.errors import MissingExtraError
from ddcap.evaluation.tokenization import INSTALL
from ddcap.recipe import load_recipe
from experiments.plan import load_plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands():
    """Every command once, without its comment; those that docs/finetune.md's own test runs left out.

    `python -m experiments` has the parsers of `ddcap ablate` and `ddcap report`.
    """
    pages = {}
    launcher = r"\s*(?:torchrun .* -m |accelerate launch .* -m |pip install .* && )?"
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        text = re.sub(
            r"python -m experiments (?=ablate|report)|(?<=-m )experiments (?=ablate)", "ddcap ", text
        )
        text = re.sub(r"<!-- (tutorial|csv|encoder) -->.*<!-- end of \1 -->", "", text, flags=re.S)
        for line in text.splitlines():
            found = re.match(launcher + r"(ddcap .+?)(?:\s+#.*)?$", line)
            if found is not None and "..." not in line:
                pages.setdefault(found[1], page.name)
            if page.name == "README.md" and line.startswith("|"):  # its tables hold a command in each row
                for command in re.findall(r"`(ddcap .+?)`", line):
                    pages.setdefault(command, page.name)
    return [pytest.param(command, id=f"{page}: {command}") for command, page in pages.items()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small_photos, captions_json, tiny_model_folder):
    """A folder where every path that the documents name leads to a few images, captions or a tiny model."""
    here = tmp_path_factory.mktemp("workplace")
    for name in ("recipes", "examples"):
        (here / name).symlink_to(ROOT / name)
    shutil.copy(small_photos[0], here / "photo.jpg")
    folders = ("images", "flickr8k/images", "path/to/flickr8k/images", "my_data/photos", "coco")
    for name in folders:
        shutil.copytree(small_photos[0].parent, here / name)
    for name in ("folder", "photos"):
        (here / name).mkdir()
        for photo in small_photos[:3]:
            shutil.copy(photo, here / name)
    shutil.copytree(small_photos[0].parent, here / "my_pictures")
    shards = [(photo.stem, photo.suffix, photo.read_bytes(), ["of the web"]) for photo in small_photos]
    (here / "shards").mkdir()
    write_shard(here / "shards" / "00000.tar", shards)
    content = json.loads(captions_json.read_text())
    for number, image in enumerate(content["images"]):
        image["split"] = ("train", "test", "val")[number % 3]
        image["imgid"] = 123 if number == 1 else number  # docs/evaluation.md scores a caption of it
        (here / "my_pictures" / image["filename"]).with_suffix(".txt").write_text(
            image["sentences"][0]["raw"]
        )
    for name in (
        "dataset.json",
        "dataset_flickr8k.json",
        "dataset_coco_small.json",
        "my_data/my.json",
        "coco/dataset_coco.json",
    ):
        (here / name).write_text(json.dumps(content))
    for name in ("flickr8k", "path/to/flickr8k"):
        (here / name / "dataset_flickr8k.json").write_text(json.dumps(content))
    for name in ("NAME", "animals", "g", "text", "flickr8k_default", "coco_vit_b16_trainable"):
        shutil.copytree(tiny_model_folder, here / "runs" / name / "best")
    said = [
        {"image_id": str(image["imgid"]), "caption": "a cat"}
        for image in content["images"]
        if image["split"] == "test"
    ]
    (here / "my.json").write_text(json.dumps({**content, "images": content["images"][:3]}))
    (here / "predictions.json").write_text(json.dumps(said))
    (here / "objects.json").write_text(json.dumps({"123": ["person", "dining table"]}))
    for name in ("one.json", "other.json", "default.json", "test.json"):
        scored = [
            "metrics",
            str(here / "predictions.json"),
            "--data",
            str(here / "dataset.json"),
            "--split",
            "test",
        ]
        assert main([*scored, "--fast", "--output", str(here / name)]) == 0
    return here


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documents_runs(
    command, workplace, request, onnx_command, monkeypatch, capsys, tmp_path
):
    """As it stands there, but on the CPU and without the metrics that take Java long.

    Of a training or an ablation every setting is read; that they run is tested for every recipe and plan.
    """
    monkeypatch.chdir(workplace)
    words = [{"MODEL": "default", "cuda": "cpu"}.get(word, word) for word in shlex.split(command)]
    words = [word.replace("owner/name", str(tmp_path / "pushed")) for word in words[1:]]
    words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    options = build_parser().parse_args(words)
    _clear(workplace)
    if words[0] in ("train", "tagger", "distill"):
        changes = [word for word in words[1:] if "=" in word]
        for path in (word for word in words[1:] if word.endswith(".yaml")):
            assert load_recipe(path, changes)
    elif words[0] == "serve":
        assert options.port == 8000  # tests/serve runs it
    elif "ray" in words:
        assert options.engine == "ray"  # tests/bulk/test_ray.py runs it
    elif command == onnx_command:
        folder = request.getfixturevalue("shallow_graphs_folder")  # it has written that
        assert Captioner.from_pretrained(folder, precision="int8", runtime="onnx")("photo.jpg")[0].text
    elif "--web" in words:
        assert (options.web, options.model) == (True, "default")  # tests/browser writes it
    elif words[0] == "ablate":
        assert load_plan(options.plan, options.output, options.overrides).trials
    elif words[0] == "report":
        assert main(words) == 1  # there is no ablation here
        assert "no ablation's results" in capsys.readouterr().err
    elif words[0] == "convert":
        assert main(words) == 1  # nor a checkpoint of the release
        assert "released.pt: no such file" in capsys.readouterr().err
    else:
        status = main([*words, "--fast"] if words[0] in ("evaluate", "metrics") else words)
        printed = capsys.readouterr()
        assert status == 0, printed.err
        assert printed.out or "\n0 problems" in printed.err or " captioned, 0 failed" in printed.err


def _clear(workplace):
    """Remove what earlier commands have made of photographs: each is a job of its own."""
    for left in [*workplace.glob("*captions*"), *workplace.glob("described*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def test_no_page_outside_research_is_over_1800_words():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        words = len(page.read_text().split())
        assert words <= 1800, f"{page.name}: {words} words; move figures to docs/research"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def python_blocks():
    """Pages with Python, and their blocks; those that tests of their own run left out."""
    found = []
    for page in PAGES:
        text = re.sub(
            r"<!-- (tutorial|python|own encoder) -->.*<!-- end of \1 -->", "", page.read_text(), flags=re.S
        )
        blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
        if blocks:
            found.append(pytest.param(blocks, id=page.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("blocks", python_blocks())
def test_the_python_of_a_page_runs_from_its_first_block_to_its_last(blocks, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    _clear(workplace)
    known = {"captioner": Captioner.from_pretrained()}
    with Image.open("photo.jpg") as image:
        known["pil_image"] = image.convert("RGB")
        known["pixel_array"] = np.asarray(known["pil_image"])
    known["jpeg_bytes"] = Path("photo.jpg").read_bytes()
    for block in blocks:
        if "webdataset" in block:
            continue  # tests/bulk reads the tars with it
        exec(block, known)


@pytest.mark.slow
def test_a_custom_encoder_learns_an_image_by_heart(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    text = (ROOT / "docs" / "own_encoder.md").read_text()
    text = text.split("<!-- own encoder -->")[1].split("<!-- end of own encoder -->")[0]
    known = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)), known)
    assert capsys.readouterr().out.splitlines()[-1] == known["captions"][0]
    assert known["losses"][-1] < known["losses"][0] / 2


@pytest.mark.parametrize(
    "command",
    [
        "train recipes/finetune.yaml training.epoch=5",
        "caption examples/photos/coffee.jpg --model nobody",
        "caption nothing.jpg",
        "caption README.md",
        "caption examples/photos/flower.jpg --min-sure 0.3",
    ],
)
def test_messages_of_the_troubleshooting_page_are_the_real_ones(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(command.split())
    printed = "\n".join(capsys.readouterr())
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    told = re.findall(r"^```text\n(.*?)\n```", page, flags=re.M | re.S)
    said = [" ".join(line.split()) for line in printed.splitlines()]
    assert any(" ".join(text.split()) in line for text in told for line in said), printed


def test_the_troubleshooting_page_names_every_extra_and_how_to_get_java():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert f"Java is not on the path; run: {INSTALL}" in page
    assert str(MissingExtraError("running 'default' with PyTorch", "train")) in page
    extras = set(importlib.metadata.metadata("ddcap").get_all("Provides-Extra")) - {"dev", "dev-web"}
    missing = {extra for extra in extras if f"| `{extra}` |" not in page}
    assert not missing


def test_the_paper_map_names_files_that_exist():
    names = re.findall(r"`((?:\w+/)+\w+\.py)`", (ROOT / "docs" / "paper_map.md").read_text())
    assert len(names) > 10
    for name in names:
        assert (ROOT / "src" / "ddcap" / name).exists() or (ROOT / name).exists(), name


def test_a_page_cites_every_benchmark():
    """One whose figures nobody reads goes."""
    text = "\n".join(page.read_text() for page in PAGES)
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__.py", "headless.py"}
    assert {name for name in scripts if f"benchmarks/{name}" not in text} == set()


def test_the_readme_holds_the_two_commands_that_ci_runs():
    block = (ROOT / "README.md").read_text().split("<!-- set-up -->")[1].split("<!-- end of set-up -->")[0]
    lines = [line for line in block.splitlines() if line.startswith("pip ")]
    assert len(lines) == 2
    assert "ddcap caption examples/photos" in lines[0] and "pytest" in lines[1]


def run_example(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_the_example_draw_trace_runs(monkeypatch, tmp_path, photos, tiny_model_folder):
    run_example(monkeypatch, "draw_trace.py", photos[0], tmp_path / "trace.png", "--model", tiny_model_folder)
    assert (tmp_path / "trace.png").stat().st_size > 10_000


def test_the_example_caption_folder_runs(monkeypatch, tmp_path, photos, tiny_model_folder):
    out = tmp_path / "captions.csv"
    run_example(monkeypatch, "caption_folder.py", photos[0].parent, out, "--model", tiny_model_folder)
    assert len(out.read_text().splitlines()) == len(photos) + 1


@pytest.mark.slow
def test_the_example_datasets_map_runs(monkeypatch, tmp_path, small_photos, capsys):
    pytest.importorskip("datasets")
    import pyarrow.parquet

    folder, out = tmp_path / "photos", tmp_path / "captions.parquet"
    shutil.copytree(small_photos[0].parent, folder)
    (folder / "broken.jpg").write_bytes(b"nothing")
    run_example(monkeypatch, "datasets_map.py", folder, out, "--cache", tmp_path / "cache")
    rows = {Path(row["file"]): row for row in pyarrow.parquet.read_table(out).to_pylist()}
    assert rows.keys() == set(folder.iterdir())
    broken = rows.pop(folder / "broken.jpg")
    assert broken["caption"] is None and "broken.jpg: not an image" in broken["error"]
    expected = Captioner.from_pretrained()(sorted(rows))
    assert [rows[path]["caption"] for path in sorted(rows)] == [caption.text for caption in expected]
    assert expected[0].text in capsys.readouterr().out
