"""A page of the default model, its server, a headless Chromium; skipped, with a reason, if absent."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import headless
from ddcap.browser.runtime import FILES, PACKAGE, VERSION
from ddcap.commands import main

PAGE = Path(__file__).parents[2] / "src" / "ddcap" / "browser" / "page"


@pytest.fixture(scope="session")
def runtime_folder(made_once, tmp_path_factory):
    """ONNX Runtime for browsers as npm packs it, fetched once for all processes of a test run."""
    pytest.importorskip("onnx")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")

    def fetch(folder):
        fetched = tmp_path_factory.mktemp("npm")
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(fetched)]
        if subprocess.run(command, capture_output=True, cwd=fetched, check=False).returncode:
            pytest.skip(f"npm cannot fetch {PACKAGE}")
        names = [f"package/dist/{name}" for name in FILES]
        subprocess.run(["tar", "-xzf", *fetched.glob("*.tgz"), "-C", fetched, *names], check=True)
        shutil.move(fetched / "package", folder)

    return made_once("onnxruntime-web", fetch)


@pytest.fixture(scope="session")
def site(made_once, runtime_folder):
    """The page of the default model."""

    def export(folder):
        words = ["export", "default", str(folder), "--web", "--onnxruntime-web", str(runtime_folder)]
        assert main(words) == 0

    return made_once("site", export)


@pytest.fixture(scope="session")
def serve():
    """Serves a folder as a static host does, without headers of its own; gives the address."""
    with contextlib.ExitStack() as hosts:
        yield lambda folder: hosts.enter_context(headless.static_host(folder))


@pytest.fixture(scope="module")  # while it is there, its event loop runs: asyncio.run fails
def chromium():
    pytest.importorskip("playwright")
    if headless.CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with headless.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """Runs JavaScript that may import from the page's folder; gives back what it hands to `tell`."""
    binary = shutil.which("node")
    if binary is None:
        playwright = pytest.importorskip("playwright", reason="there is neither node nor playwright's")
        binary = str(Path(playwright.__file__).parent / "driver" / "node")
    folder = tmp_path_factory.mktemp("node")

    def run(code, **data):
        (folder / "data.json").write_text(json.dumps(data))
        script = folder / "script.mjs"
        script.write_text(
            'import { readFileSync } from "node:fs";\n'
            f'const page = (name) => import("file://{PAGE}/" + name);\n'
            f'const data = JSON.parse(readFileSync("{folder}/data.json", "utf8"));\n'
            "const tell = (result) => console.log(JSON.stringify(result));\n" + code
        )
        done = subprocess.run([binary, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
