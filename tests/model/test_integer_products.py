"""The graphs' products of integers are exact on every processor; x86 without VNNI adds pairs in 16 bits."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ddcap
from ddcap.errors import DDCapError
from ddcap.model.config import INT8, WEIGHTS_NAME
from ddcap.model.loading import load_model
from ddcap.model.onnx_export import export_onnx
from ddcap.model.onnx_model import _in_form, _Weights
from ddcap.model.quantization import (
    FACTOR,
    FACTOR_SCALE,
    LARGEST_PAIR,
    SCALE,
    largest_pair,
    quantise,
    quantise_factor,
)

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

DEFAULT = Path(ddcap.__file__).parent / "pretrained" / "default"
PRODUCT = "MatMulIntegerToFloat"


@pytest.fixture(scope="module", params=["default", pytest.param("exported", marks=pytest.mark.slow)])
def products(request):
    """Name, integers (inputs, outputs) and inputs' zero of each product in the graphs of a folder."""
    folder = DEFAULT if request.param == "default" else request.getfixturevalue("tiny_graphs_folder")
    found = {}
    graphs = [path.stem for path in folder.glob(f"*{INT8}.onnx")]
    assert {"memory" + INT8, "step" + INT8} <= set(graphs)
    for graph in graphs:
        proto = onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph
        loaded = {name: value.numpy().copy() for name, value in zip(*_Weights(folder).of(graph), strict=True)}
        own = {
            one.name: onnx.numpy_helper.to_array(one) for one in proto.initializer if one.name not in loaded
        }
        constants = {**own, **loaded}
        for node in proto.node:
            assert "Integer" not in node.op_type or node.op_type == PRODUCT, node.op_type
            if node.op_type == PRODUCT:
                found[f"{graph}: {node.input[1]}"] = (constants[node.input[1]], constants[node.input[4]])
    return found


def test_no_two_products_are_over_16_bits(products):
    assert len(products) > 10
    for name, (weights, zero) in products.items():
        assert weights.dtype == np.int8 and zero.dtype == np.uint8 and zero == 128, name
        # any two of a column, since it is a processor's affair which it adds; all of them in 32 bits
        ordered = np.sort(weights.astype(np.int64), axis=0)
        for two in (ordered[-2:].clip(min=0), -ordered[:2].clip(max=0)):
            assert 255 * two.sum(axis=0).max() <= np.iinfo(np.int16).max, name
            assert two.sum(axis=0).max() > 120, name  # as fine as may be
        assert 255 * np.abs(ordered).sum(axis=0).max() <= np.iinfo(np.int32).max, name


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tiny_graphs_folder", "shallow_graphs_folder"])
def test_every_product_is_rewritten(request, folder):
    """Of a model with a judge of its own, and of one whose denoiser judges."""
    folder = request.getfixturevalue(folder)
    taken = {graph: set() for graph in ("memory", "step", "judge")}
    for graph, names in taken.items():
        proto = onnx.load(folder / f"{graph}{INT8}.onnx", load_external_data=False).graph
        names |= {node.input[1] for node in proto.node if node.op_type == PRODUCT}
        floating = onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph
        assert not any(node.op_type == PRODUCT for node in floating.node)
    weights = {
        f"{name}/factor": layer.weight.detach().numpy().tobytes()
        for name, layer in load_model(folder).integer_products().items()
    }
    both = taken["memory"] | taken["step"] | taken["judge"]
    # by what they hold: of weights that are equal, as some of the tiny judge's, a graph has one
    assert {weights[name] for name in both} == set(weights.values())
    assert len(both) >= len(weights) - 2 and taken["step"] and taken["judge"]
    assert all(name.endswith("cross_attention.key_value/factor") for name in taken["memory"])


def test_products_are_exact_at_their_worst(products):
    generator = np.random.default_rng(0)
    for name, (weights, zero) in products.items():
        rows = worst_rows(weights, generator)  # (N, inputs)
        exact = (rows.astype(np.float64) - int(zero)) @ weights.astype(np.float64)  # far below 2**53
        assert np.array_equal(multiplied(rows, weights, zero), exact.astype(np.float32)), name


def worst_rows(weights, generator):
    """Inputs that make the largest sums, of all pairs of neighbours, and of any kind."""
    inputs, outputs = weights.shape
    pairs = weights[: inputs // 2 * 2].astype(np.int64).reshape(-1, 2, outputs).sum(axis=1)
    columns = {*pairs.max(axis=0).argsort()[-8:], *pairs.min(axis=0).argsort()[:8]}
    rows = [np.full(inputs, 255), np.zeros(inputs)]
    for column in columns:
        rows += [np.where(weights[:, column] > 0, 255, 0), np.where(weights[:, column] < 0, 255, 0)]
    return np.concatenate([rows, generator.integers(0, 256, (16, inputs))]).astype(np.uint8)


def multiplied(rows, weights, zero):
    """(N, outputs) of the graphs' own operation; scales are 1."""
    constants = {
        "weights": weights,
        "one": np.float32(1),
        "scale": np.ones(weights.shape[1], np.float32),
        "zero": zero,
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                PRODUCT, ["rows", "weights", "one", "scale", "zero"], ["y"], domain="com.microsoft"
            )
        ],
        "product",
        [onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.UINT8, ["N", weights.shape[0]])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", weights.shape[1]])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    versions = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"rows": rows})[0]


def test_weights_that_are_multiplied_are_scaled_by_their_largest_pair():
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((400, 256)).astype(np.float32)
    weight[:100] = np.abs(weight[:100])
    weight[100] = 0
    weight[101, 1:] = 0
    weight[102, :2], weight[102, 2:] = 63.5 * 0.01, 0  # both are rounded up
    integers, scale = quantise_factor(weight)
    ordered = np.sort(integers.astype(int), axis=1)
    pairs = np.maximum(-ordered[:, :2].clip(max=0).sum(axis=1), ordered[:, -2:].clip(min=0).sum(axis=1))
    assert pairs.max() == pairs[102] == LARGEST_PAIR and np.array_equal(pairs, largest_pair(integers))
    assert np.iinfo(np.int16).max >= 255 * LARGEST_PAIR
    assert (np.abs(integers * scale[:, None] - weight) <= 0.501 * scale[:, None]).all()
    assert np.delete(pairs, 100).min() >= 126


def test_a_graph_takes_integers_as_they_are_stored():
    weight = np.random.default_rng(0).standard_normal((300, 256)).astype(np.float32)
    pair = quantise_factor(weight)
    assert _in_form(*pair, FACTOR) is pair[0] and _in_form(*pair, FACTOR_SCALE) is pair[1]
    for form, value in zip((FACTOR, FACTOR_SCALE), pair, strict=True):
        assert np.array_equal(_in_form(weight, None, form), value)
    for form, value in zip(("int8", "scale"), quantise(weight), strict=True):  # of an early export
        assert np.array_equal(_in_form(weight, None, form), value)


def test_a_file_that_was_quantised_for_other_products_is_refused(tmp_path):
    folder = tmp_path / "early"
    shutil.copytree(DEFAULT, folder)
    stored = load_file(folder / WEIGHTS_NAME)
    name = "denoiser.blocks.0.mlp.0.weight"
    stored[name], stored[name + SCALE] = quantise(stored[name] * stored[name + SCALE][:, None])
    save_file(stored, folder / WEIGHTS_NAME)
    with pytest.raises(DDCapError, match=r"early: an earlier version .* --dtype int8"):
        export_onnx(folder)
