"""ONNX Runtime for browsers: one pinned version of its npm package, checked by its hashes."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ddcap.errors import DDCapError

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""What a page needs of it, with their SHA-256."""
_LICENCES = ("LICENSE", "ThirdPartyNotices.txt")  # ONNX Runtime's, from its package for Python
_LONGEST_WAIT = 600  # seconds for npm


@contextmanager
def runtime_files(given: str | Path | None = None) -> Iterator[list[Path]]:
    """The files of the runtime that a page needs, checked; gone after the context, if they were fetched.

    Args:
        given: the npm package, unpacked; None fetches it by `npm pack`.

    Raises:
        DDCapError: if it is not to be had, or not the version that was tested.
    """
    if given is not None:
        yield _checked(Path(given))
        return
    with tempfile.TemporaryDirectory() as temporary:
        _fetch(Path(temporary))
        yield _checked(Path(temporary) / "package")


def licences() -> list[Path]:
    """ONNX Runtime's licence and those of what it is built from: the same source for Python and browsers."""
    try:
        root = Path(str(distribution("onnxruntime").locate_file("onnxruntime")))
    except PackageNotFoundError:
        return []
    return [root / name for name in _LICENCES if (root / name).is_file()]


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    wanted = f"{PACKAGE}@{VERSION}"
    if npm is None:
        raise DDCapError(
            f"--web: npm is not installed and cannot download {wanted}; install Node.js, or unpack the "
            "package yourself and give --onnxruntime-web FOLDER"
        )
    command = [npm, "pack", wanted, "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_LONGEST_WAIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise DDCapError(f"--web: npm pack {wanted} took over {_LONGEST_WAIT} s; try again") from None
    archive = folder / f"{PACKAGE}-{VERSION}.tgz"
    if done.returncode != 0 or not archive.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[0].strip() if lines else f"exit status {done.returncode}"
        raise DDCapError(
            f"--web: npm pack {wanted} failed ({reason}); check the network, or give --onnxruntime-web FOLDER"
        )
    if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != _SHA512:
        raise DDCapError(
            f"--web: npm downloaded another {wanted} than expected (SHA-512 differs); give "
            "--onnxruntime-web FOLDER"
        )
    with tarfile.open(archive) as packed:
        for name in FILES:
            content = packed.extractfile(f"package/dist/{name}")
            assert content is not None  # the hash says what is in it
            target = folder / "package" / "dist" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _checked(folder: Path) -> list[Path]:
    found = []
    for name, digest in FILES.items():
        path = next((path for path in (folder / "dist" / name, folder / name) if path.is_file()), None)
        if path is None:
            raise DDCapError(
                f"{folder}: has no dist/{name}; give the unpacked npm package {PACKAGE} {VERSION}"
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise DDCapError(f"{path}: is not from {PACKAGE} {VERSION} (SHA-256 differs); use that version")
        found.append(path)
    return found
