"""A page of the default model, its server, a headless Chromium; skipped, with a reason, if absent."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from ddcap.browser.runtime import FILES, PACKAGE, VERSION
from ddcap.commands import main

PAGE = Path(__file__).parents[2] / "src" / "ddcap" / "browser" / "page"
CHROMIUM = "/usr/bin/chromium"
ALONE = [  # it asks nobody for anything
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def runtime_folder(tmp_path_factory):
    """ONNX Runtime for browsers as npm packs it, fetched once for all processes of a test run."""
    pytest.importorskip("onnx")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "popen" in shared.name else shared) / "onnxruntime-web"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            fetched = tmp_path_factory.mktemp("npm")
            command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(fetched)]
            if subprocess.run(command, capture_output=True, cwd=fetched, check=False).returncode:
                pytest.skip(f"npm cannot fetch {PACKAGE}")
            names = [f"package/dist/{name}" for name in FILES]
            subprocess.run(["tar", "-xzf", *fetched.glob("*.tgz"), "-C", fetched, *names], check=True)
            shutil.move(fetched / "package", shared)
    return shared


def exported(model, folder, runtime):
    assert main(["export", str(model), str(folder), "--web", "--onnxruntime-web", str(runtime)]) == 0
    return folder


@pytest.fixture(scope="session")
def site(runtime_folder, tmp_path_factory):
    """The page of the default model."""
    return exported("default", tmp_path_factory.mktemp("site") / "page", runtime_folder)


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 (as the library has it)
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def serve():
    """Serves a folder as a static host does, without headers of its own; gives the address."""
    servers = []

    def start(folder):
        handler = functools.partial(_Handler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        yield browser
        browser.close()


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
