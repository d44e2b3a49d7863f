"""A model's folder to a static page: its graphs and weights, what the page has to know, and the page itself.

The page computes what `model/onnx_model.py` and `decoding/` compute, by ONNX Runtime in WebAssembly; its
scripts stand in `page/`, what people see and touch in `ddcap.web_interface`. Nothing in them is of one
model: they read `model/model.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from ddcap.browser.runtime import licences, runtime_files
from ddcap.captioner import Captioner
from ddcap.data.concepts import LONGEST, NO_PIECE, ConceptSpelling
from ddcap.data.images import LARGEST_AREA, LARGEST_SQUASH, LONGEST_STRIP, SMALLEST_SIDE
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import DDCapError, MissingExtraError
from ddcap.files import replacing_folder, write_text
from ddcap.model.config import (
    CONFIDENCE_NAME,
    DETECTOR_NAME,
    GRAPHS_NAME,
    WEIGHTS_NAME,
    read_config,
)
from ddcap.model.detector import detector_path
from ddcap.publishing import find_model
from ddcap.settings import DecodingSettings, dump_settings
from ddcap.web_interface import INTERFACE, interface_body

DESCRIPTION = "model/model.json"
_GRAPHS = ("encoder", "length", "memory", "step", "choose", "guided_choose")
_ALIGNED = 64  # bytes; where each constant begins


def export_page(
    model: str | Path, output: str | Path, *, runtime: str | Path | None = None, **decoding: Any
) -> None:
    """Write the page.

    Args:
        model: "default", a folder with ONNX graphs, or a Hub id.
        output: folder to write; one that was written so before is replaced.
        runtime: see `runtime_files`.
        decoding: settings to become the page's own.

    Raises:
        DDCapError: if this model cannot caption in a browser, or the runtime is not to be had.
        MissingExtraError: if onnx is not installed.
    """
    captioner, folder, output = _loaded(model), find_model(model), Path(output)
    if (
        output.exists()
        and not (output / DESCRIPTION).is_file()
        and (output.is_file() or any(output.iterdir()))
    ):
        raise DDCapError(f"{output}: exists and is not an exported page; choose another folder")
    description = _describe(captioner, decoding)
    with runtime_files(runtime) as runtime_paths, replacing_folder(output) as target:
        with as_file(files("ddcap.browser") / "page") as page:
            shutil.copytree(page, target, dirs_exist_ok=True)
        shutil.copytree(INTERFACE, target / "interface", ignore=shutil.ignore_patterns("body.html"))
        index = (target / "index.html").read_text(encoding="utf-8")
        write_text(target / "index.html", index.replace("{{interface}}", interface_body()))
        (target / "model").mkdir()
        description["graphs"] = _write_graphs(folder, target / "model")
        shutil.copyfile(folder / WEIGHTS_NAME, target / "model" / WEIGHTS_NAME)
        if captioner.confidence is not None:
            shutil.copyfile(folder / CONFIDENCE_NAME, target / "model" / CONFIDENCE_NAME)
        if captioner.model.detector is not None:
            shutil.copyfile(detector_path(folder), target / "model" / DETECTOR_NAME)
            captioner.model.detector.save_licence(target)
            description["graphs"]["detector"] = {"file": DETECTOR_NAME, "bytes": 0, "constants": []}
        write_text(target / DESCRIPTION, json.dumps(description, separators=(",", ":")))
        (target / "onnxruntime").mkdir()
        for path in (*runtime_paths, *licences()):
            shutil.copyfile(path, target / "onnxruntime" / path.name)
        _list_files(target)


def _loaded(model: str | Path) -> Captioner:
    """The model on ONNX Runtime, if a page can run it."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingExtraError("writing a page", "onnx") from None
    folder = find_model(model)
    if read_config(folder).model.kind != "diffusion":
        raise DDCapError(
            f"{model}: is an autoregressive model, and the page runs diffusion models only; give one of these"
        )
    if not (folder / GRAPHS_NAME).is_file():
        raise DDCapError(
            f"{model}: has no ONNX graphs; run: ddcap export {model} FOLDER --onnx, then "
            "ddcap export FOLDER OUT --web"
        )
    captioner = Captioner.from_pretrained(model, precision="float32", runtime="onnx")
    if captioner.tokenizer.kind != "compact":
        raise DDCapError(
            f"{model}: has GPT-2's tokenizer, which the page cannot read; train with tokenizer.kind=compact"
        )
    return captioner


def _describe(captioner: Captioner, decoding: dict[str, Any]) -> dict[str, Any]:
    """Collect what the page has to know, but for the graphs."""
    model, tokenizer = captioner.model, captioner.tokenizer
    config = model.config
    description = {
        "weights": WEIGHTS_NAME,
        "confidence": None if captioner.confidence is None else CONFIDENCE_NAME,
        "preprocessing": {**vars(model.preprocessing), "largest_squash": LARGEST_SQUASH},
        "limits": {
            "smallest_side": SMALLEST_SIDE,
            "largest_area": LARGEST_AREA,
            "longest_strip": LONGEST_STRIP,
        },
        "max_length": config.model.max_length,
        "diffusion_steps": config.diffusion.steps,
        "concentrated_attention": config.model.concentrated_attention,
        "tokens": _tokens(tokenizer),
        "decoding": _settings(captioner.settings(**decoding)),
    }
    if model.vocabulary is not None:
        description["concepts"] = {
            "words": model.vocabulary.words,
            "forms": model.vocabulary.forms,
            "persons": [model.vocabulary.number(word) for word in model.vocabulary.persons],
            **_spelling(model.spelling),
        }
        if model.vocabulary.rates is not None:
            description["concepts"]["rates"] = model.vocabulary.rates.to_dict()
    return description


def _tokens(tokenizer: CaptionTokenizer) -> dict[str, Any]:
    """List what each token adds to a text, and the pairs that make longer tokens, in their order."""
    merges = json.loads(tokenizer.to_json())["model"]["merges"]
    return {
        "pieces": tokenizer.pieces(range(tokenizer.vocabulary_size)),
        "end_id": tokenizer.end_id,
        "merges": [" ".join(pair) for pair in merges],
    }


def _settings(settings: DecodingSettings) -> dict[str, Any]:
    """Decoding settings, if the page can follow them."""
    for name, only in (
        ("method", "best_first"),
        ("schedule", "per_caption"),
        ("temperature", 0.0),
        ("order", "probability"),
        ("block", None),
    ):
        value = getattr(settings, name)
        if value != only:
            raise DDCapError(f"{name}={value}: the page supports {name}={only} only; set {name}={only}")
    return dump_settings(settings)


def _spelling(spelling: ConceptSpelling) -> dict[str, Any]:
    """List the spellings of the words of concepts: the concept, then its tokens."""
    rows = zip(spelling.concept.tolist(), spelling.pieces.tolist(), strict=True)
    return {
        "longest": LONGEST,
        "spelling": [
            [concept, *(piece for piece in pieces if piece != NO_PIECE)] for concept, pieces in rows
        ],
        "goes_on": spelling.continues.astype(int).tolist(),
    }


def _write_graphs(folder: Path, target: Path) -> dict[str, Any]:
    """Write the graphs of float32; says where their constants belong.

    Those of 8-bit products give other captions on other machines: they round a difference in the last bit of
    their inputs to one of 1/127. The weights, and so the bytes to download, are the same.
    """
    import onnx

    used = json.loads((folder / GRAPHS_NAME).read_text(encoding="utf-8"))
    written = {}
    for name in _GRAPHS:
        if name not in used:
            continue  # of a model that predicts no length
        proto = onnx.load(str(folder / f"{name}.onnx"), load_external_data=False)
        constants, offset = [], 0
        for constant in proto.graph.initializer:
            if constant.name not in used[name]:
                continue
            size = (
                math.prod(constant.dims) * onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).itemsize
            )
            constant.ClearField("external_data")
            for key, value in (("location", WEIGHTS_NAME), ("offset", str(offset)), ("length", str(size))):
                constant.external_data.add(key=key, value=value)
            constants.append([*used[name][constant.name], offset])
            offset += -(-size // _ALIGNED) * _ALIGNED
        onnx.save(proto, str(target / f"{name}.onnx"))
        written[name] = {"file": f"{name}.onnx", "bytes": offset, "constants": constants}
    return written


def _list_files(target: Path) -> None:
    """Write what there is to download, for progress and for the time without a network."""
    sizes, digest = {}, hashlib.sha256()
    for path in sorted(target.rglob("*")):
        if path.is_file():
            name = path.relative_to(target).as_posix()
            sizes[name] = path.stat().st_size
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    listed = json.dumps({"version": digest.hexdigest()[:16], "sizes": sizes}, indent=1)
    write_text(
        target / "files.js",
        f"// Written by ddcap export --web: what the page consists of.\nself.FILES = {listed};\n",
    )
