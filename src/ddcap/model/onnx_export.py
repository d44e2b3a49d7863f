"""A diffusion model as ONNX graphs: what `model/onnx_model.py` runs without PyTorch.

Graphs with a dynamic number of images each: pixels to features (encoder), features to length logits (length;
of a model with a length head), features to the cross-attention's keys and values (memory), one step of the
denoiser to logits (step), logits to the likeliest tokens (choose; with guidance, guided_choose), and finished
captions to the likelihood of their tokens (judge; of a model with one). Memory, step and judge come in two
kinds: with matrix products in float32, as they are traced, and in int8, rewritten from these
(`integer_graphs.py`). Graphs hold no weights: they name those of `model.safetensors`, so that both runtimes
compute with the same numbers.

Shapes: I images, K captions of each, L caption positions, n of them asked for, P image positions, V words.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddcap.data.concepts import ConceptTokens
from ddcap.errors import DDCapError, MissingExtraError
from ddcap.files import replacing, write_text
from ddcap.model.blocks import MemoryKeysValues
from ddcap.model.config import GRAPHS, GRAPHS_NAME, INT8, WEIGHTS_NAME
from ddcap.model.ddcap import DDCapModel, read_left_to_right
from ddcap.model.features import ImageFeatures
from ddcap.model.guidance import guide
from ddcap.model.integer_graphs import Factor, in_integers
from ddcap.model.loading import load_model
from ddcap.model.packing import ChosenPacking
from ddcap.model.quantization import (
    FACTOR,
    FACTOR_SCALE,
    LARGEST_PAIR,
    SCALE,
    is_quantised,
    largest_pair,
    quantise_factor,
)

_SMALL = 1024  # numbers of a constant; smaller ones stay in the graph


class _Encoder(nn.Module):
    """Pixels (I, 3, H, W) to memory and summary, and to concepts with their confidences if it sees any."""

    def __init__(self, model: DDCapModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features = self.model.encoder(pixels)
        seen = features.concepts
        return (features.memory, features.summary, *((seen.ids, seen.confidences) if seen else ()))


class _Memory(nn.Module):
    """Features of I images to the parts of their memory, then to those of the image-free one (one image)."""

    def __init__(self, model: DDCapModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, memory: Tensor, summary: Tensor, ids: Tensor | None = None, confidences: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        features = _features(memory, summary, ids, confidences)
        both = (self.model.project_memory(features), self.model.image_free_keys_values())
        return tuple(part for memory in both for part in _parts_of(memory).values())


def _features(
    memory: Tensor, summary: Tensor, ids: Tensor | None = None, confidences: Tensor | None = None
) -> ImageFeatures:
    seen = None if ids is None or confidences is None else ConceptTokens(ids, confidences)
    return ImageFeatures(memory, summary, seen)


def _parts_of(memory: MemoryKeysValues) -> dict[str, Tensor]:
    """Keys and values (I, H, P, D/H) of every layer, and which positions are visible (I, P), if not all are.

    Each layer has arrays of its own: out of one for all layers a graph would copy them at every step.
    """
    parts = {}
    for layer, (keys, values) in enumerate(memory.layers):
        parts.update({f"keys_{layer}": keys, f"values_{layer}": values})
    return parts if memory.mask is None else {**parts, "visible": memory.mask}


class _Step(nn.Module):
    """One step: noised captions (I, K, L) to logits (n, V) of the positions asked for.

    Only chosen positions are computed, N of them: `rows` (N,), as places in (I * K * L,), in ascending order.
    Those asked for, `asked` (n,), are some of them. What the layer norms take from each timestep are tables
    in the graph.
    """

    def __init__(self, model: DDCapModel) -> None:
        super().__init__()
        self.model = model
        layers = model.denoiser.adaln_scale_shift().detach()
        self.scale_shift = nn.ModuleList(
            nn.ParameterList(nn.Parameter(table.clone(), requires_grad=False) for table in tables)
            for tables in layers
        )

    def forward(
        self,
        tokens: Tensor,
        timestep: Tensor,
        lengths: Tensor,
        rows: Tensor,
        asked: Tensor,
        memory: list[Tensor],
    ) -> Tensor:
        images, captions, longest = tokens.shape
        count = 2 * self.model.config.model.layers
        layers = tuple(zip(memory[:count:2], memory[1:count:2], strict=True))
        hidden = self.model(
            tokens.reshape(-1, longest),
            timestep.reshape(-1),
            lengths.reshape(-1),
            MemoryKeysValues(layers, *memory[count:]),
            [list(tables.parameters()) for tables in self.scale_shift],
            asked=ChosenPacking(asked, images * captions, longest),
            packing=ChosenPacking(rows, images * captions, longest),
        )
        logits: Tensor = self.model.denoiser.logits(hidden)
        return logits


class _Judge(nn.Module):
    """Features of I images and captions (I, K, L) to log p(token | tokens before it, image) (I, K, L)."""

    def __init__(self, model: DDCapModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        summary: Tensor,
        ids: Tensor | None = None,
        confidences: Tensor | None = None,
    ) -> Tensor:
        features = _features(memory, summary, ids, confidences)
        return read_left_to_right(self.model, tokens.flatten(0, 1), features).reshape(tokens.shape)


class _Choose(nn.Module):
    """Logits (B, n, V) to the likeliest token (B, n) and its log-probability, after (B, V) was added."""

    def forward(self, logits: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        log_probability, chosen = (logits + added.unsqueeze(1)).log_softmax(dim=2).max(dim=2)
        return chosen, log_probability


class _GuidedChoose(nn.Module):
    """The same of logits with the image and logits without it, guided with a scale ()."""

    def forward(
        self, logits: Tensor, image_free: Tensor, scale: Tensor, added: Tensor
    ) -> tuple[Tensor, Tensor]:
        chosen, log_probability = _Choose()(guide(logits, image_free, scale), added)
        return chosen, log_probability


def check_exportable(model: nn.Module) -> None:
    """Raise what `export_onnx` would, before anything is written."""
    if find_spec("onnx") is None or find_spec("onnxscript") is None:  # torch's exporter needs the second
        raise MissingExtraError("writing ONNX graphs", "onnx")
    if not isinstance(model, DDCapModel):
        raise DDCapError("an autoregressive model cannot be exported as ONNX graphs; run it with PyTorch")
    if model.config.model.padding != "hidden":
        raise DDCapError(
            f"model.padding={model.config.model.padding}: not supported by ONNX graphs, which hide "
            "padding; run this model with PyTorch"
        )
    if model.config.model.self_conditioning:
        raise DDCapError(
            "model.self_conditioning=true: not supported by ONNX graphs; run this model with PyTorch"
        )


def export_onnx(folder: str | Path) -> None:
    """Write the graphs of the model in `folder` beside its weights.

    Raises:
        DDCapError: if the model is an autoregressive one, or an earlier version has quantised it.
        MissingExtraError: if onnx is not installed.
    """
    model: Any = load_model(folder)
    check_exportable(model)
    _check_factors(Path(folder), model)
    import onnx

    folder, known = Path(folder), _fingerprints(model)
    layers = {f"{name}.weight": name for name in model.integer_products()}
    weights = {}
    for name, program in _graphs(model):
        graph = program.model_proto
        kinds = {name: graph}
        if name + INT8 in GRAPHS:
            kinds[name + INT8] = in_integers(graph, _factors(graph, known, layers))
        for kind, proto in kinds.items():
            weights[kind] = _take_weights(proto, known)
            _forget_origins(proto)
            with replacing(folder / f"{kind}.onnx") as temporary:
                onnx.save(proto, temporary)
    write_text(folder / GRAPHS_NAME, json.dumps(weights) + "\n")


def _check_factors(folder: Path, model: DDCapModel) -> None:
    """Refuse a file of integers that not every processor multiplies exactly."""
    with safe_open(folder / WEIGHTS_NAME, framework="np") as file:
        names = set(file.keys())
        for name in (f"{layer}.weight" for layer in model.integer_products()):
            if name + SCALE in names and largest_pair(file.get_tensor(name)).max() > LARGEST_PAIR:
                raise DDCapError(
                    f"{folder}: an earlier version has quantised its weights, for products that saturate on "
                    "some processors; write it anew with 'ddcap export --onnx --dtype int8'"
                )


def _graphs(model: DDCapModel) -> Iterator[tuple[str, Any]]:
    """Name and exported program of each graph that multiplies float32."""
    model = model.cpu().eval()
    any_size = torch.export.Dim.DYNAMIC
    images, captions, length, asked = 3, 2, 5, 4  # none is special, and no two are equal
    size = model.encoder.preprocessing.size
    per_image: Any = {0: any_size}
    pixels = torch.zeros(images, 3, size, size)
    set_attention = getattr(model.encoder.network, "set_attn_implementation", None)
    if set_attention is not None:  # a CLIP's; the exporter knows no other way of it
        set_attention("eager")
    with torch.no_grad():
        features = tuple(part.contiguous() for part in _Encoder(model)(pixels))
        names = ("memory", "summary", "concepts", "confidences")[: len(features)]
        yield "encoder", _export(_Encoder(model), {"pixels": (pixels, per_image)}, names)
        if model.length_head is not None:
            summary = {"summary": (features[1], per_image)}
            yield "length", _export(model.length_head, summary, ("length_logits",))
    with torch.enable_grad():  # then attention is written out, see `layers.attend`: fewer and simpler nodes
        memory = _parts_of(model.project_memory(_features(*features)))
        shape = (images, captions)
        per_caption: Any = {0: any_size, 1: any_size}
        per_position: Any = {**per_caption, 2: any_size}
        rows = torch.arange(images * captions * length - 1)
        per_place: Any = {0: any_size, 2: any_size}
        step = {
            "tokens": (torch.full((*shape, length), model.mask_id), per_position),
            "timestep": (torch.zeros(shape, dtype=torch.long), per_caption),
            "lengths": (torch.full(shape, length), per_caption),
            "rows": (rows, {0: any_size}),
            "asked": (rows[:asked], {0: any_size}),
        }
        seen = {
            name: (part, per_caption if name == "visible" else per_place) for name, part in memory.items()
        }
        outputs = (*memory, *(f"free_{name}" for name in memory))
        inputs = {name: (value, per_image) for name, value in zip(names, features, strict=True)}
        yield "memory", _export(_Memory(model), inputs, outputs)
        yield "step", _export(_Step(model), step, ("logits",), seen)
        if model.config.model.judge != "none":
            judged = {"tokens": (torch.ones(*shape, length, dtype=torch.long), per_position), **inputs}
            yield "judge", _export(_Judge(model), judged, ("log_probabilities",))
    logits = torch.zeros(captions, asked, model.mask_id)
    inputs = {"logits": (logits, per_caption), "added": (logits[:, 0].clone(), per_image)}
    found = ("chosen", "log_probability")
    yield "choose", _export(_Choose(), inputs, found)
    free = {"image_free": (logits.clone(), per_caption), "scale": (torch.tensor(1.17), {})}
    inputs = {"logits": inputs["logits"], **free, "added": inputs["added"]}
    yield "guided_choose", _export(_GuidedChoose(), inputs, found)


def _export(
    module: nn.Module,
    inputs: dict[str, tuple[Tensor, Any]],
    outputs: Sequence[str],
    listed: dict[str, tuple[Tensor, Any]] | None = None,
) -> Any:
    """The graph of `module`.

    Args:
        module: what to export.
        inputs: an example of each, and which of its sizes may differ.
        outputs: their names.
        listed: inputs that `module` takes as a list, behind the others.
    """
    arguments: list[tuple[Any, Any]] = [*inputs.values()]
    if listed is not None:
        arguments.append(([part for part, _ in listed.values()], [sizes for _, sizes in listed.values()]))
    with _quietly():
        return torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in arguments),
            dynamo=True,
            dynamic_shapes=tuple(sizes for _, sizes in arguments),
            input_names=[*inputs, *(listed or ())],
            output_names=list(outputs),
            verbose=False,
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's remarks on packages that it does not need."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# Which weight of the file each large constant of a graph is: the exporter turns some of them round.


def _fingerprints(model: DDCapModel) -> dict[bytes, list[Any]]:
    """Index a model's weights by content, as graphs may hold them: name, form, and if it is transposed."""
    known: dict[bytes, list[Any]] = {}
    factors = {f"{name}.weight" for name in model.integer_products()}
    for name, tensor in model.stored_state().items():
        value = tensor.numpy()
        forms = {"value": value}
        if name in factors and is_quantised(value):
            forms[FACTOR], forms[FACTOR_SCALE] = quantise_factor(value)
        for form, array in forms.items():
            for is_transposed in (False, True) if array.ndim == 2 else (False,):
                known.setdefault(
                    _fingerprint(array.T if is_transposed else array), [name, form, is_transposed]
                )
    return known


def _fingerprint(array: np.ndarray) -> bytes:
    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).digest()


def _factors(proto: Any, known: dict[bytes, list[Any]], layers: Mapping[str, str]) -> dict[str, Factor]:
    """The constants that are weights of `layers`, by their names in a graph."""
    from onnx import numpy_helper

    found = {}
    for constant in proto.graph.initializer:
        name, _, is_transposed = known.get(_fingerprint(numpy_helper.to_array(constant)), ("", "", False))
        if name in layers:
            found[constant.name] = Factor(layers[name], is_transposed)
    return found


def _take_weights(proto: Any, known: dict[bytes, list[Any]]) -> dict[str, list[Any]]:
    """Take what is in the file of weights out of a graph; says what each is."""
    import onnx
    from onnx import numpy_helper

    taken = {}
    for constant in proto.graph.initializer:
        array = numpy_helper.to_array(constant)
        found = known.get(_fingerprint(array))
        if found is None or (array.size < _SMALL and found[1] != FACTOR_SCALE):
            continue  # integers and their scales are from the same file, whichever rounding they have there
        taken[constant.name] = found
        constant.ClearField("raw_data")
        constant.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_NAME), ("offset", "0"), ("length", str(array.nbytes))):
            constant.external_data.add(key=key, value=value)
    return taken


def _forget_origins(proto: Any) -> None:
    """Take out the notes on which line of Python each node is from: most of a graph's bytes."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for part in (*proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
    proto.graph.ClearField("value_info")
