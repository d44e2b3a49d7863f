"""The graph of a detector beside an image encoder: pixels and summary to concepts and persons."""

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ddcap.data.images import Preprocessing
from ddcap.model.concepts import Tagger
from ddcap.model.detector import Detector

PERSON = 0  # the category
_SIDE = 300  # pixels that the detector sees
_LARGE = 10_000  # numbers of a constant from which on it is stored in 8 bits
_KEPT = 32  # boxes that are looked at for persons, the surest
_COUNTED = 100  # boxes that are looked at for the numbers of things, the surest
_FAINTEST, _SUREST = -9.0, 3.0  # logits beyond these say no more
_FOUND = 0.5  # score from which on a box counts as a person
_SAME = 0.5  # overlap (intersection over union) from which on two boxes are one person's
_AGAINST, _FOR = -3.0, 1.5  # most that the detector says against persons, and for them


class Look(nn.Module):
    """Pixels (I, 3, H, W) of an encoder to the image that the detector expects (I, 3, 300, 300)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", 2 * std)
        self.register_buffer("shift", 2 * mean - 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Resize, and scale to -1 to 1."""
        resized = nn.functional.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
        return resized * self.scale + self.shift


def found_of(logits: Tensor) -> Tensor:
    """Logits (I, A, 1 + C) of boxes, background first, to the evidence (I, 2 C) of the detector."""
    things = logits[:, :, 1:]
    surest = things.amax(dim=1).clamp(_FAINTEST, _SUREST)
    boxes = things.amax(dim=2).topk(_COUNTED, dim=1).indices  # (I, n)
    kept = things.gather(1, boxes.unsqueeze(2).expand(-1, -1, things.shape[2]))
    return torch.cat([surest, (kept.sigmoid().sum(dim=1) + 1e-3).log()], dim=1)


class Tell(nn.Module):
    """Boxes (I, A, 1, 4), logits (I, A, 1 + C) and the summary (I, E) to concepts, (I, K), and persons, (I,).

    Args:
        tagger: of the evidence (I, E + 2 C).
        kept: K.
        anchors: (A, 4) ymin, xmin, ymax, xmax.
        slope, offset: of the log-odds that people name a person, given the surest box's.
        prior: the share of captions that name one.
    """

    def __init__(
        self, tagger: Tagger, kept: int, anchors: Tensor, slope: float, offset: float, prior: float
    ) -> None:
        super().__init__()
        self.tagger, self.kept = tagger, kept
        self.register_buffer("centres", (anchors[:, :2] + anchors[:, 2:]) / 2)
        self.register_buffer("sizes", anchors[:, 2:] - anchors[:, :2])
        self.slope, self.offset = slope, offset
        self.prior = float(np.log(prior / (1 - prior)))

    def forward(self, boxes: Tensor, logits: Tensor, summary: Tensor) -> tuple[Tensor, ...]:
        """Concepts and their confidences; of persons probability, evidence, count and place."""
        concepts = self.tagger.strongest(torch.cat([summary, found_of(logits)], dim=1), self.kept)
        top, rank = logits[:, :, 1 + PERSON].topk(_KEPT, dim=1)  # (I, K), the surest first
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
        evidence = (log_odds - self.prior).clamp(_AGAINST, _FOR)
        return concepts.ids, concepts.confidences, log_odds.sigmoid(), evidence, count, place


def for_any_number(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The detector for several images at once: shapes that begin with 1 begin with any number."""
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


def exported(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> onnx.ModelProto:
    """A module as a graph for any number of images."""
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


def _small_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its large matrices and filters in 8 bits, a scale for each row.

    They become float32 again when the graph is loaded, so its products are exact on every processor. Products
    of integers saved a fifth of the detector's time without VNNI, and lost much of what it finds.
    """
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    for constant in list(graph.graph.initializer):
        numbers = numpy_helper.to_array(constant)
        if numbers.dtype != np.float32 or numbers.size < _LARGE:
            continue
        name, axes = constant.name, tuple(range(1, numbers.ndim))
        scale = np.maximum(np.abs(numbers).max(axis=axes, keepdims=True) / 127, 1e-12)
        small = np.round(numbers / scale).astype(np.int8)
        graph.graph.initializer.remove(constant)
        graph.graph.initializer.extend(
            [numpy_helper.from_array(small, f"{name}_8"), numpy_helper.from_array(scale, f"{name}_scale")]
        )
        cast = helper.make_node("Cast", [f"{name}_8"], [f"{name}_whole"], to=onnx.TensorProto.FLOAT)
        graph.graph.node.insert(0, helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]))
        graph.graph.node.insert(0, cast)
    return graph


def composed(look: onnx.ModelProto, detector: onnx.ModelProto, tell: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of the three."""
    parts = []
    for number, part in enumerate((look, detector, tell)):
        part.ir_version = 10
        del part.graph.value_info[:]
        parts.append(onnx.compose.add_prefix(part, f"{number}_"))
    seeing = onnx.compose.merge_models(parts[0], parts[1], io_map=[("0_image", "1_image")])
    whole = onnx.compose.merge_models(
        seeing, parts[2], io_map=[("1_boxes", "2_boxes"), ("1_logits", "2_logits")]
    )
    whole = _small_weights(whole)
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
    ends = {"0_pixels": "pixels", "2_summary": "summary", **{f"2_{one}": one for one in Detector.OUTPUTS}}
    return ends.get(name, name)
