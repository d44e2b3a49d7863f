"""Products of integers in a graph: which are rewritten, what they compute, and that the rest stays."""

import numpy as np
import pytest

from ddcap.model.integer_graphs import Factor, in_integers
from ddcap.model.quantization import quantise_factor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

GENERATOR = np.random.default_rng(0)
FIRST, SECOND, OTHER = (
    GENERATOR.standard_normal(shape).astype(np.float32) for shape in ((12, 8), (20, 8), (8, 5))
)
VALUES = GENERATOR.standard_normal((2, 3, 8)).astype(np.float32) * np.array([[[9], [1], [0]]], np.float32)


@pytest.fixture(params=[("images", "length"), (None, None)], ids=["sizes known", "unknown"])
def graph(request):
    """Three products of one input: with a constant that lies right, one that is turned round, another one."""
    make = onnx.helper.make_node
    constants = {"first": FIRST.T.copy(), "second": SECOND, "other": OTHER}
    nodes = [
        make("MatMul", ["values", "first"], ["a"]),
        make("Transpose", ["second"], ["turned"], perm=[1, 0]),
        make("MatMul", ["values", "turned"], ["b"]),
        make("MatMul", ["values", "other"], ["c"]),
    ]
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "products",
        [tensor("values", onnx.TensorProto.FLOAT, [*request.param, 8])],
        [tensor(name, onnx.TensorProto.FLOAT, None) for name in "abc"],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


FACTORS = {"first": Factor("layer.0", True), "second": Factor("layer.1", False)}


def computed(graph):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"values": VALUES})


def in_eight_bits(values, weight):
    """The product of `values` (..., inputs), quantised by rows, with the integers of a weight."""
    integers, scale = quantise_factor(weight)
    largest = np.abs(values).max(axis=-1, keepdims=True).clip(1e-8) / np.float32(127)
    rows = np.rint(values / largest).clip(-128, 127)
    return rows @ integers.T.astype(np.float32) * scale * largest


def test_products_with_the_weights_are_of_integers(graph):
    first, second, other = computed(in_integers(graph, FACTORS))
    np.testing.assert_allclose(first, in_eight_bits(VALUES, FIRST), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, in_eight_bits(VALUES, SECOND), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other, VALUES @ OTHER, rtol=1e-5, atol=1e-6)
    exact = computed(graph)[0]
    assert 0 < np.abs(first - exact).max() < 0.05 * np.abs(exact).max()


def test_an_input_is_quantised_once_and_nothing_is_left_over(graph):
    rewritten = in_integers(graph, FACTORS).graph
    operations = [node.op_type for node in rewritten.node]
    assert operations.count("QuantizeLinear") == 1 and operations.count("MatMulIntegerToFloat") == 2
    assert operations.count("MatMul") == 1 and "Transpose" not in operations
    taken = {name for node in rewritten.node for name in node.input}
    constants = {constant.name for constant in rewritten.initializer}
    assert constants <= taken and not constants & FACTORS.keys()
    assert {constant.name for constant in graph.graph.initializer} == {"first", "second", "other"}
