"""ONNX graphs that multiply integers, made from those that multiply float32.

Every product with a weight of `DDCapModel.integer_products` becomes one of integers; the rest stays. Its
input is quantised row by row as it comes: a row of its own scale keeps what a caption becomes independent of
the others in its batch. Eight unsigned bits for the input, with 128 for 0, as processors multiply them, and
weights that let all of them do it exactly (see `model/quantization.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddcap.model.quantization import quantise_factor

_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operations
_ZERO, _ONE, _LARGEST, _SMALLEST, _COLUMNS = (
    f"integer_{name}" for name in ("zero", "one", "largest", "smallest", "columns")
)
_CONSTANTS: dict[str, np.ndarray] = {
    _ZERO: np.array(128, np.uint8),
    _ONE: np.array(1, np.float32),
    _LARGEST: np.array(127, np.float32),
    _SMALLEST: np.array(1e-8, np.float32),  # of a row of zeros
    _COLUMNS: np.array([1], np.int64),
}


class Factor(NamedTuple):
    """The layer whose weight a constant of a graph is: (outputs, inputs), or turned round."""

    layer: str
    is_transposed: bool


def in_integers(model: Any, factors: Mapping[str, Factor]) -> Any:
    """Return a graph whose products with `factors`, named constants, are products of integers.

    `model` is an `onnx.ModelProto` that holds its constants.
    """
    from onnx import helper

    nodes, constants = _Writer(model.graph, factors).used()
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, constants)
    versions = [*model.opset_import, helper.make_opsetid(_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=model.ir_version)


def _sizes(value: Any) -> str:
    """Name the sizes of a tensor before its last, such as 's0*s1, s2'; unknown ones by the tensor."""
    sizes = [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim[:-1]]
    return ", ".join(map(str, sizes)) if sizes and all(sizes) else value.name


class _Writer:
    """Writes the nodes of a graph anew. What several products need stands there once."""

    def __init__(self, graph: Any, factors: Mapping[str, Factor]) -> None:
        self.graph = graph
        self._nodes: list[Any] = []
        self._written: set[str] = set()
        self._constants = dict(_CONSTANTS)
        self._weights = {factors[one.name].layer: one for one in graph.initializer if one.name in factors}
        values = (*graph.input, *graph.value_info)
        self._sizes = {value.name: _sizes(value) for value in values}
        self._dimensions = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        self._factors = dict(factors)  # a graph may turn a constant round before it multiplies
        for node in graph.node:
            turned = self._factors.get(node.input[0]) if node.op_type == "Transpose" else None
            if turned is not None:
                self._factors[node.output[0]] = Factor(turned.layer, not turned.is_transposed)
            factor = self._factors.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
            turns = node.op_type == "Gemm" and any(one.name == "transB" and one.i for one in node.attribute)
            if factor is not None and factor.is_transposed != turns:
                self._multiply(node.input[0], factor.layer, node.output[0], *node.input[2:])
            else:
                self._nodes.append(node)

    def used(self) -> tuple[list[Any], list[Any]]:
        """The nodes and constants that the outputs need, in their order."""
        from onnx import numpy_helper

        needed, nodes = {output.name for output in self.graph.output}, []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        own = [
            numpy_helper.from_array(value, name) for name, value in self._constants.items() if name in needed
        ]
        return nodes[::-1], [*(one for one in self.graph.initializer if one.name in needed), *own]

    def _multiply(self, source: str, layer: str, product: str, bias: str | None = None) -> None:
        """`source` (..., inputs) with the weight of `layer`, and a bias, gives `product` (..., outputs)."""
        inputs, outputs = self._integers_of(layer)
        sizes, is_rows = self._sizes.get(source, source), self._dimensions.get(source) == 2
        self._quantise(source, inputs, sizes, is_rows=is_rows)
        integers = [f"{source}/integers", f"{layer}/factor", _ONE, f"{layer}/factor_scale", _ZERO]
        self._write("MatMulIntegerToFloat", integers, f"{product}/of_integers", domain=_DOMAIN)
        scaled = product if is_rows and bias is None else f"{product}/rows"
        self._write("Mul", [f"{product}/of_integers", f"{source}/scale"], scaled)
        if bias is not None:
            self._write("Add", [scaled, bias], product)  # of a Gemm, which multiplies rows only
        if is_rows:
            return
        self._constants[f"integer_{outputs}"] = np.array([outputs], np.int64)
        self._write("Concat", [f"{sizes}/sizes", f"integer_{outputs}"], f"{sizes}/to_{outputs}", axis=0)
        self._write("Reshape", [f"{product}/rows", f"{sizes}/to_{outputs}"], product)

    def _integers_of(self, layer: str) -> tuple[int, int]:
        """Make constants of the weight of `layer`; returns how many inputs and outputs it has."""
        from onnx import numpy_helper

        if f"{layer}/factor" not in self._constants:
            constant = self._weights[layer]
            weight = numpy_helper.to_array(constant)
            integers, scale = quantise_factor(
                weight.T if self._factors[constant.name].is_transposed else weight
            )
            self._constants[f"{layer}/factor"] = np.ascontiguousarray(integers.T)
            self._constants[f"{layer}/factor_scale"] = scale
        inputs, outputs = self._constants[f"{layer}/factor"].shape
        return inputs, outputs

    def _quantise(self, source: str, width: int, sizes: str, *, is_rows: bool) -> None:
        """`source` (..., width) as rows of integers (N, width), with a scale each (N, 1).

        What has the same `sizes` before the width has as many rows.
        """
        rows, scale, count = f"{source}/rows", f"{source}/row_scale", f"{sizes}/count"
        if is_rows:
            rows = source
        else:
            self._constants[f"integer_rows_{width}"] = np.array([-1, width], np.int64)
            self._write("Shape", [source], f"{sizes}/sizes", start=0, end=-1)
            self._write("Reshape", [source, f"integer_rows_{width}"], rows)
        self._write("Abs", [rows], f"{source}/size")
        self._write("ReduceMax", [f"{source}/size", _COLUMNS], f"{source}/largest", keepdims=0)
        self._write("Clip", [f"{source}/largest", _SMALLEST], f"{source}/at_least")
        self._write("Div", [f"{source}/at_least", _LARGEST], scale)
        self._write("Unsqueeze", [scale, _COLUMNS], f"{source}/scale")
        self._write("Shape", [scale], count)
        self._write("Expand", [_ZERO, count], f"{sizes}/zeros")
        self._write("QuantizeLinear", [rows, scale, f"{sizes}/zeros"], f"{source}/integers", axis=0)

    def _write(self, operation: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        if output not in self._written:
            self._written.add(output)
            self._nodes.append(helper.make_node(operation, inputs, [output], **attributes))
