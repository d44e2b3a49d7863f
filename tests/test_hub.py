import http.server
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from ddcap.captioner import Captioner
from ddcap.errors import CheckpointError
from ddcap.files import is_folder_name
from ddcap.publishing import MODEL_FILES, SHIM_NAME, find_model


@pytest.mark.parametrize(
    "name",
    [
        "./a",
        "../a/b",
        "/a/b",
        "~/a",
        "~",
        r"C:\folder",
        "C:/folder",
        "c:folder",
        r"a\b",
        r"\\server\a",
        Path("a/b"),
    ],
)
def test_names_of_folders(name):
    assert is_folder_name(name)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch16", "owner/name", "name", "default", "a.b/c_d"])
def test_names_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_folder_name(name)
    (tmp_path / name).mkdir(parents=True)
    assert is_folder_name(name)


@pytest.mark.parametrize("name", [r"C:\models\mine", "C:/mine", r"models\mine"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name, hub):
    with pytest.raises(CheckpointError, match="no such model"):
        find_model(name)
    assert hub == []


def test_a_model_goes_into_a_folder_of_another_system(tiny_model_folder, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    captioner = Captioner.from_pretrained(tiny_model_folder)
    assert captioner.push_to_hub(r"C:\mine") == r"C:\mine"
    assert hub == [] and (tmp_path / r"C:\mine" / "config.json").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine that has nothing; what it is asked for."""
    from huggingface_hub import constants

    class Asked(list):
        tokens: ClassVar[set[str | None]] = set()

    asked = Asked()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            asked.tokens.add(self.headers.get("Authorization"))
            logging.getLogger("ddcap").info("asked")  # to see what was said before
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield asked
        server.shutdown()


@pytest.mark.parametrize("revision", [None, "0123abc"])
def test_an_encoder_from_elsewhere_is_announced_before_anything_is_downloaded(
    tiny_model_folder, tmp_path, hub, caplog, revision
):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["encoder"].update(name="somebody/else", revision=revision)
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO, "ddcap"), pytest.raises(CheckpointError) as caught:
        Captioner.from_pretrained(folder)
    assert "encoder.name='somebody/else'" in str(caught.value) and "\n" not in str(caught.value)
    said = [record.getMessage() for record in caplog.records if record.name == "ddcap"]
    assert said[0].startswith(f"{folder}: downloading its image encoder from the Hub: somebody/else, ")
    assert (revision or "newest revision") in said[0] and "asked" in said[1:]
    asked = [path for path in hub if "somebody/else" in path]
    assert asked and all(f"/{revision or 'main'}" in path for path in asked)


def test_a_local_encoder_is_not_announced(tiny_model_folder, hub, caplog):
    Captioner.from_pretrained(tiny_model_folder)
    assert hub == [] and not [record for record in caplog.records if record.name == "ddcap"]


def test_a_download_brings_all_that_a_model_consists_of(tiny_model_folder, tmp_path):
    Captioner.from_pretrained("default", runtime="torch").save(tmp_path)
    files = {path.name for folder in (tmp_path, tiny_model_folder) for path in folder.iterdir()}
    assert "concepts.json" in files
    for_transformers = {SHIM_NAME, "preprocessor_config.json"}  # which downloads them itself
    assert files - for_transformers <= set(MODEL_FILES)


@pytest.fixture
def downloaded(tiny_model_folder, tmp_path):
    """A Hub's cache with two revisions of one model."""
    cache = tmp_path / "cache"
    repository = cache / "models--somebody--captions"
    for commit, revision, steps in (("a" * 40, "main", 3), ("b" * 40, "v1", 5)):
        snapshot = repository / "snapshots" / commit
        Captioner.from_pretrained(tiny_model_folder).save_pretrained(snapshot, steps=steps)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    return cache


def test_a_revision_from_a_cache_without_the_hub(downloaded, hub):
    where = {"cache_dir": downloaded, "local_files_only": True}
    assert Captioner.from_pretrained("somebody/captions", **where).decoding.steps == 3
    assert Captioner.from_pretrained("somebody/captions", revision="v1", **where).decoding.steps == 5
    with pytest.raises(CheckpointError, match="not available from the Hub"):
        Captioner.from_pretrained("somebody/captions", revision="v2", **where)
    assert hub == []


def test_the_token_goes_to_the_hub(hub, tmp_path):
    with pytest.raises(CheckpointError):
        Captioner.from_pretrained("somebody/private", token="hf_secret", cache_dir=tmp_path)
    assert "Bearer hf_secret" in hub.tokens
