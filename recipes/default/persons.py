"""Give a model a detector of persons: quantise it, calibrate it, and write it into the model's folder.

    python recipes/default/persons.py MODEL detector.onnx dataset.json IMAGES [FOLDER ...]

The graph is that of `detector.py`. It becomes MODEL/persons.onnx, which reads the same pixels as the model's
image encoder. MODEL/concepts.json gets the concepts that are persons, and MODEL/config.json says that there
is a detector. Images are those of the split train, of the named folders (`filepath`) if there are any. 600 of
them, drawn with a fixed seed, set the probabilities, 40 of these the ranges of the 8-bit numbers.

Convolutions with one filter a channel stay in float32: they are most of the error, and hardly faster in 8
bits. The weights of the others are from -64 to 64, for which the products are exact on every processor (see
`ddcap/model/quantization.py`).
"""

import copy
import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from ddcap.data.images import Preprocessing, load_image
from ddcap.data.records import CaptionedImage, load_records
from ddcap.decoding.confidence import Logistic
from ddcap.evaluation.hallucination import names_person, thing_words
from ddcap.files import write_text
from ddcap.model.config import CONFIG_NAME, read_config
from ddcap.model.persons import PersonDetector
from ddcap.publishing import find_model

_SIDE = 300  # pixels that the detector sees
_KEPT = 32  # boxes that are looked at, the surest
_FOUND = 0.5  # score from which on a box counts as a person
_SAME = 0.5  # overlap (intersection over union) from which on two boxes are one person's
_RANGES, _CALIBRATED = 40, 600  # images


class _Look(nn.Module):
    """Pixels (I, 3, H, W) of an encoder to the picture that the detector expects (I, 3, 300, 300)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", 2 * std)
        self.register_buffer("shift", 2 * mean - 1)

    def forward(self, pixels: Tensor) -> Tensor:
        resized = nn.functional.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
        return resized * self.scale + self.shift


class _Tell(nn.Module):
    """Boxes (I, A, 1, 4) and logits (I, A, 2) to what is told of persons, (I,) each.

    Args:
        anchors: (A, 4) ymin, xmin, ymax, xmax.
        slope, offset: of the log-odds that people name a person, given the surest box's.
        prior: the share of captions that name one.
    """

    def __init__(self, anchors: Tensor, slope: float, offset: float, prior: float) -> None:
        super().__init__()
        self.register_buffer("centres", (anchors[:, :2] + anchors[:, 2:]) / 2)
        self.register_buffer("sizes", anchors[:, 2:] - anchors[:, :2])
        self.slope, self.offset = slope, offset
        self.prior = float(np.log(prior / (1 - prior)))

    def forward(self, boxes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        top, rank = logits[:, :, 1].topk(_KEPT, dim=1)  # (I, K), the surest first
        code = boxes[:, :, 0].gather(1, rank.unsqueeze(2).expand(-1, -1, 4))
        centres = code[..., :2] / 10 * self.sizes[rank] + self.centres[rank]
        sizes = (code[..., 2:] / 5).exp() * self.sizes[rank]
        low, high = centres - sizes / 2, centres + sizes / 2  # (I, K, 2)
        shared = torch.minimum(high.unsqueeze(2), high.unsqueeze(1)) - torch.maximum(
            low.unsqueeze(2), low.unsqueeze(1)
        )
        shared = shared.clamp(min=0).prod(dim=3)  # (I, K, K)
        area = sizes.prod(dim=2)
        is_same = shared / (area.unsqueeze(2) + area.unsqueeze(1) - shared) > _SAME
        is_surer = torch.ones(_KEPT, _KEPT).tril(-1) > 0  # column before row
        found = (top.sigmoid() >= _FOUND) & ~(is_same & is_surer).any(dim=2)
        largest = torch.where(found, area, 0.0).argmax(dim=1, keepdim=True)
        count = found.sum(dim=1)
        place = torch.where(count > 0, centres[..., 1].gather(1, largest).squeeze(1), 0.5)
        log_odds = self.slope * top[:, 0] + self.offset
        return log_odds.sigmoid(), log_odds - self.prior, count, place


def _quantised(graph: onnx.ModelProto, pictures: list[np.ndarray], folder: Path) -> onnx.ModelProto:
    """The detector in 8 bits, but for the convolutions with one filter a channel."""

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.left, None)
            return None if picture is None else {"picture": picture}

    whole, prepared, small = (str(folder / name) for name in ("whole.onnx", "prepared.onnx", "small.onnx"))
    onnx.save(graph, whole)
    quant_pre_process(whole, prepared)
    groups = {
        node.name: next((part.i for part in node.attribute if part.name == "group"), 1)
        for node in onnx.load(prepared).graph.node
        if node.op_type == "Conv"
    }
    quantize_static(
        prepared,
        small,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=[name for name, count in groups.items() if count > 1],
    )
    return onnx.load(small)


def _for_any_number(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The detector for several pictures at once: shapes that begin with 1 begin with any number."""
    shapes = {node.input[1] for node in graph.graph.node if node.op_type == "Reshape"}
    for constant in graph.graph.initializer:
        if constant.name in shapes:
            sizes = onnx.numpy_helper.to_array(constant).copy()
            sizes[0] = -1 if -1 not in sizes else 0  # inferred, or as the input's
            constant.CopyFrom(onnx.numpy_helper.from_array(sizes, constant.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "images"
    del graph.graph.value_info[:]
    return graph


def _exported(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> onnx.ModelProto:
    any_size = torch.export.Dim.DYNAMIC
    return torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        dynamo=True,
        dynamic_shapes=tuple({0: any_size} for _ in inputs),
        input_names=[*inputs],
        output_names=outputs,
        opset_version=18,
        verbose=False,
    ).model_proto


def _composed(look: onnx.ModelProto, detector: onnx.ModelProto, tell: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of the three."""
    parts = []
    for number, part in enumerate((look, detector, tell)):
        part.ir_version = 10
        del part.graph.value_info[:]
        parts.append(onnx.compose.add_prefix(part, f"{number}_"))
    seeing = onnx.compose.merge_models(parts[0], parts[1], io_map=[("0_picture", "1_picture")])
    whole = onnx.compose.merge_models(
        seeing, parts[2], io_map=[("1_boxes", "2_boxes"), ("1_logits", "2_logits")]
    )
    for node in whole.graph.node:
        node.input[:] = [_plain(name) for name in node.input]
        node.output[:] = [_plain(name) for name in node.output]
    for value in (*whole.graph.input, *whole.graph.output):
        value.name = _plain(value.name)
    for one in (whole, whole.graph, *whole.graph.node, *whole.graph.initializer):
        one.ClearField("metadata_props")
        one.ClearField("doc_string")
    return whole


def _plain(name: str) -> str:
    ends = {"0_pixels": "pixels", **{f"2_{one}": one for one in PersonDetector.OUTPUTS}}
    return ends.get(name, name)


def main() -> None:
    """Read the arguments, make the graph, write the files."""
    model, graph, json_path, images, *folders = sys.argv[1:]
    folder = find_model(model)
    config, detector = read_config(folder), onnx.load(graph)
    from ddcap.captioner import Captioner

    captioner = Captioner.from_pretrained(model)
    vocabulary, preprocessing = captioner.model.vocabulary, captioner.model.preprocessing
    known = load_records(json_path, images, "train")
    records = [record for record in known if not folders or record.path.parent.name in folders]
    random.Random(0).shuffle(records)
    records = records[:_CALIBRATED]
    persons = [word for word in vocabulary.words if names_person(thing_words().mentions(word))]
    vocabulary.persons = tuple(persons)
    notes = {entry.key: entry.value for entry in detector.metadata_props}
    anchors = torch.tensor(json.loads(notes.pop("anchors")))
    pixels = torch.zeros(2, 3, preprocessing.size, preprocessing.size)
    look = _Look(preprocessing)
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        some = [torch.from_numpy(preprocessing(load_image(one.path)))[None] for one in records[:_RANGES]]
        small = _quantised(detector, [look(one).numpy() for one in some], Path(temporary))
        small = _for_any_number(small)
        looking = _exported(look, {"pixels": pixels}, ["picture"])
        raw = {"boxes": torch.zeros(2, len(anchors), 1, 4), "logits": torch.zeros(2, len(anchors), 2)}

        def composed(slope: float, offset: float, prior: float) -> PersonDetector:
            telling = _exported(_Tell(anchors, slope, offset, prior), raw, list(PersonDetector.OUTPUTS))
            whole = _composed(copy.deepcopy(looking), copy.deepcopy(small), telling)
            onnx.helper.set_model_props(whole, notes)
            return PersonDetector(whole.SerializeToString(), threads=1)

        slope, offset, prior = _calibrated(composed(1.0, 0.0, 0.5), records, captioner, persons)
        found = composed(slope, offset, prior)
    found.save(folder)
    vocabulary.save(folder)
    write_text(folder / CONFIG_NAME, json.dumps(replace(config, persons=True).to_dict(), indent=2) + "\n")
    told = f"{len(records)} images, a person in {prior:.3f} of their captions"
    print(f"{told}; {slope:.3f} x log-odds {offset:+.3f}")


def _calibrated(
    raw: PersonDetector, records: list[CaptionedImage], captioner: object, persons: list[str]
) -> tuple[float, float, float]:
    """Slope and offset of the log-odds that a caption names a person, and the share of captions that do."""
    vocabulary, preprocessing = captioner.model.vocabulary, captioner.model.preprocessing
    numbers = {vocabulary.number(word) for word in persons}
    scores, is_named = [], []
    for record in records:
        (score,) = raw(preprocessing(load_image(record.path))[None]).evidence
        for caption in record.captions:
            scores.append(score)
            is_named.append(not numbers.isdisjoint(vocabulary.find(caption)))
    fitted = Logistic.fit(np.array(scores, dtype=np.float64)[:, None], np.array(is_named))
    return float(fitted.weights[0]), fitted.bias, float(np.mean(is_named))


if __name__ == "__main__":
    main()
