"""The light runtime against PyTorch: the same captions from the same file, and PyTorch is not imported."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ddcap.captioner import Captioner
from ddcap.commands import main
from ddcap.errors import CheckpointError, DDCapError
from ddcap.model.config import GRAPHS

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

DECODING = [
    {"guidance": 1.0},
    {"guidance": 1.17},
    {"guidance": 1.0, "steps": 3, "length": 9},
    {"guidance": 1.0, "candidates": 4, "length": 8},
    {"guidance": 1.5, "candidates": 3},
    {"guidance": 1.0, "temperature": 1.0},
    {"guidance": 1.3, "temperature": 0.7, "length": 6},
    {"length_rule": "expected", "schedule": "released"},
]


@pytest.fixture(scope="module")
def folder(tiny_graphs_folder):
    """A tiny model with a CLIP, a length head and a judge, with its graphs."""
    return tiny_graphs_folder


@pytest.fixture(scope="module")
def both(folder):
    return tuple(
        Captioner.from_pretrained(folder, precision="float32", runtime=runtime)
        for runtime in ("onnx", "torch")
    )


@pytest.mark.parametrize("settings", DECODING)
def test_onnx_and_pytorch_give_the_same_captions(both, photos, settings):
    light, heavy = ([*one.caption_each(photos, num=1, seed=3, batch_size=4, **settings)] for one in both)
    for ours, theirs in zip(light, heavy, strict=True):
        for mine, other in zip(ours.captions, theirs.captions, strict=True):
            assert mine.tokens == other.tokens
            assert mine.confidences == pytest.approx(other.confidences, rel=1e-3)
            assert [event.position for event in mine.trace.events] == [
                event.position for event in other.trace.events
            ]
    assert len({result.captions[0].text for result in light}) > 1


@pytest.mark.parametrize("template", ["a ___ dog", "[3] dog ___", "[2] in front [1]"])
def test_onnx_and_pytorch_fill_blanks_alike(both, photos, template):
    light, heavy = (one.infill(photos[1], template) for one in both)
    assert light.text == heavy.text
    assert light.confidences == pytest.approx(heavy.confidences, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_caption_does_not_depend_on_its_batch(folder, photos, precision):
    captioner = Captioner.from_pretrained(folder, precision=precision)
    assert captioner.precision == precision and captioner.runtime == "onnx"
    together = captioner(photos, candidates=3, length=8)
    alone = [captioner(photo, candidates=3, length=8)[0] for photo in photos]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_int8_is_near_float32(folder, photos):
    """Logits of one step, to a few hundredths of their spread."""
    steps = []
    for precision in ("float32", "int8"):
        model = Captioner.from_pretrained(folder, precision=precision).model
        pixels = np.stack([model.preprocessing(load(photo)) for photo in photos[:3]])
        steps.append(model.denoising_steps(model.encode(pixels), with_image_free=False))
    tokens = np.full((3, 7), model.mask_id)
    tokens[:, 2] = 5
    asked = (tokens, np.array([19, 12, 3]), np.array([7, 6, 7]), np.tile(np.arange(6), (3, 1)))
    exact, rounded = (one.logits(*asked)[0] for one in steps)
    assert 0 < np.abs(rounded - exact).std() < 0.1 * exact.std()
    chosen, log_probability = steps[0].likeliest(*asked, None)
    assert np.array_equal(chosen, exact.argmax(axis=2))
    expected = torch.from_numpy(exact).log_softmax(dim=2).amax(dim=2).numpy()
    np.testing.assert_allclose(log_probability, expected, rtol=1e-4, atol=1e-5)


def load(photo):
    from ddcap.data.images import load_image

    return load_image(photo)


def test_onnx_captioning_imports_no_torch(folder, photos):
    code = (
        "import sys; from ddcap import Captioner; "
        f"captioner, photo = Captioner.from_pretrained({str(folder)!r}), {str(photos[0])!r}; "
        "print(captioner(photo)[0].text); captioner.infill(photo, 'a ___ dog'); "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_the_graphs_hold_no_weights(folder):
    used = json.loads((folder / "graphs.json").read_text())
    assert set(used) == set(GRAPHS)  # it has all parts that there are
    for name in used:
        assert (folder / f"{name}.onnx").stat().st_size < 400_000
        assert b"/" + b"ddcap" not in (folder / f"{name}.onnx").read_bytes()  # no path of who made it
    assert {form for _, form, _ in used["step_int8"].values()} >= {"value"}


def test_unsupported_options_are_refused(folder, tiny_model_folder, tiny_ar_folder, photos, tmp_path):
    with pytest.raises(DDCapError, match="graphs run on the CPU only"):
        Captioner.from_pretrained(folder, device="cuda", runtime="onnx")
    with pytest.raises(DDCapError, match="'bfloat16': needs PyTorch"):
        Captioner.from_pretrained(folder, precision="bfloat16", runtime="onnx")
    with pytest.raises(DDCapError, match="'int8': needs ONNX graphs"):
        Captioner.from_pretrained(folder, precision="int8", runtime="torch")
    with pytest.raises(CheckpointError, match=r"has no ONNX graphs .*export --onnx"):
        Captioner.from_pretrained(tiny_model_folder, runtime="onnx")
    with pytest.raises(DDCapError, match="runtime='light': use one of auto, onnx, torch"):
        Captioner.from_pretrained(folder, runtime="light")
    light = Captioner.from_pretrained(folder)
    with pytest.raises(DDCapError, match=r"cannot be pushed; load the model with runtime='torch'"):
        light.push_to_hub(tmp_path / "saved")
    with pytest.raises(DDCapError, match=r"method=ancestral.*runtime='torch'"):
        light(photos[0], method="ancestral")
    assert main(["export", str(tiny_ar_folder), str(tmp_path / "ar"), "--onnx"]) == 1
    assert not (tmp_path / "ar").exists()


@pytest.mark.parametrize(
    "what", ["cut graph", "no graph", "other weights", "no weight", "no list", "earlier"]
)
def test_a_damaged_folder_is_one_line(folder, tmp_path, what, capsys, photos):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    if what == "cut graph":
        (broken / "step.onnx").write_bytes((folder / "step.onnx").read_bytes()[:5000])
    elif what == "no graph":
        (broken / "memory.onnx").unlink()
    elif what == "earlier":  # its positions were asked for by caption
        graph = onnx.load(folder / "step.onnx", load_external_data=False)
        for name, one in [*((one.name, one) for one in graph.graph.input)]:
            one.name = "positions" if name == "rows" else name
        for node in graph.graph.node:
            node.input[:] = ["positions" if name == "rows" else name for name in node.input]
        onnx.save(graph, broken / "step.onnx")
    elif what == "no list":
        (broken / "graphs.json").write_text("{")
    else:
        used = json.loads((folder / "graphs.json").read_text())
        constant, (_, *rest) = next(iter(used["step"].items()))
        used["step"][constant] = ["nothing" if what == "no weight" else "memory_projection.2.bias", *rest]
        (broken / "graphs.json").write_text(json.dumps(used))
    assert main(["caption", "--model", str(broken), "--precision", "float32", str(photos[0])]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(broken) in message
    if what == "earlier":
        assert "step.onnx: written by an earlier version; export the model again" in message
