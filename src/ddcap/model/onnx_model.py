"""The light runtime: a diffusion model's ONNX graphs, run without PyTorch.

The graphs are what `model/onnx_export.py` wrote; their weights are those of `model.safetensors`. All arrays
are numpy's.

Shapes: I images, B captions (B a multiple of I), L caption positions, n of them asked for, V words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.data.concepts import ConceptSpelling, ConceptTokens, ConceptVocabulary
from ddcap.data.images import Preprocessing, preprocessing_of
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import CheckpointError
from ddcap.machine import own_cores
from ddcap.model.config import GRAPHS, GRAPHS_NAME, INT8, WEIGHTS_NAME, read_config
from ddcap.model.detector import Detector
from ddcap.model.features import ImageFeatures
from ddcap.model.onnx_session import session_options
from ddcap.model.quantization import (
    FACTOR,
    FACTOR_SCALE,
    SCALE,
    in_float32,
    quantise,
    quantise_factor,
)
from ddcap.model.step_request import StepRequest


class OnnxModel:
    """A diffusion model for decoding, run by ONNX Runtime on the CPU.

    Args:
        folder: with the graphs.
        precision: "float32", or "int8" for the denoiser's matrix products.
        threads: of one call; None takes all cores (or the one core that the process has, see `own_cores`).

    Raises:
        CheckpointError: if a file is missing, damaged, of an earlier version or does not fit.
    """

    runtime = "onnx"

    def __init__(self, folder: str | Path, precision: str = "float32", threads: int | None = None) -> None:
        if threads is None and own_cores() == 1:
            threads = 1  # then `for_bulk` needs no model of its own
        self.folder, self.precision, self.threads = Path(folder), precision, threads
        self.config = read_config(folder)
        self.tokenizer = CaptionTokenizer.load(folder)
        self.vocabulary = ConceptVocabulary.load(folder) if self.config.concepts else None
        self.detector = Detector.load(folder, threads) if self.config.persons else None
        self._weights = _Weights(self.folder)
        self._graphs: dict[str, Any] = {}
        needed = ["encoder", "memory", "step", "choose"]
        if self.config.model.length_prediction:
            needed.append("length")
        if self.config.decoding.judge_weight:
            needed.append("judge")
        for name in needed:
            self.graph(name)
        if "rows" not in {one.name for one in self.graph("step").get_inputs()}:
            raise CheckpointError(
                f"{self.folder / 'step.onnx'}: written by an earlier version; export the model again with "
                "'ddcap export --onnx'"
            )

    def __reduce__(self) -> tuple[type[OnnxModel], tuple[Path, str, int | None]]:
        """Load it again from its folder where it is unpickled; sessions cannot be sent to other processes."""
        return type(self), (self.folder.absolute(), self.precision, self.threads)

    def graph(self, name: str) -> Any:
        """The session of a graph, of the precision if it comes in several."""
        if name not in self._graphs:
            file = name + INT8 if self.precision == "int8" and name + INT8 in GRAPHS else name
            self._graphs[name] = _load_graph(self.folder, file, self._weights, self.threads)
        return self._graphs[name]

    @cached_property
    def _bulk(self) -> OnnxModel:
        return OnnxModel(self.folder, self.precision, threads=1)

    def for_bulk(self) -> OnnxModel:
        """The same on one core, for as many calls at once as there are cores; made when first asked for.

        Two cores on one small matrix gain little, and nothing where each has images of its own.
        """
        return self if self.threads == 1 else self._bulk

    @property
    def device(self) -> str:
        """The device that it computes on."""
        return "cpu"

    @property
    def mask_id(self) -> int:
        """V, the id of the MASK state."""
        return self.config.vocabulary_size

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The way from an image to pixels."""
        return preprocessing_of(self.config.encoder)

    @cached_property
    def spelling(self) -> ConceptSpelling | None:
        """The spelling of the concepts' words; None without concepts."""
        return None if self.vocabulary is None else ConceptSpelling.of(self.vocabulary, self.tokenizer)

    def as_array(self, values: np.ndarray) -> np.ndarray:
        """Numbers as they are."""
        return np.asarray(values)

    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        """Features of pixels (I, 3, H, W)."""
        memory, summary, *seen = self.graph("encoder").run(None, {"pixels": pixels})
        features = ImageFeatures(memory, summary, ConceptTokens(*seen) if seen else None)
        return features if self.detector is None else features.looked_at(*self.detector(pixels, summary))

    def length_logits(self, features: ImageFeatures) -> np.ndarray | None:
        """(I, max_length) length logits, or None without a length head."""
        if not self.config.model.length_prediction:
            return None
        (logits,) = self.graph("length").run(None, {"summary": features.summary})
        return np.asarray(logits)

    def denoising_steps(self, features: ImageFeatures, *, with_image_free: bool) -> OnnxSteps:
        """The denoiser at work on captions of these images, see `model.protocol.DenoisingSteps`."""
        return OnnxSteps(self, features, with_image_free)

    def caption_judge(self, features: ImageFeatures) -> OnnxJudge | None:
        """A judge of captions of these images; None for a model without one."""
        return None if self.config.model.judge == "none" else OnnxJudge(self, features)

    def step_logits(self, asked: StepRequest, images: int, memory: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n, V) logits of one pass of the denoiser.

        Args:
            asked: of captions grouped by image.
            images: I.
            memory: their parts, by the graph's names.
        """
        per_image = len(asked.tokens) // images
        grouped = {
            name: np.ascontiguousarray(value).reshape(images, per_image, *value.shape[1:])
            for name, value in zip(StepRequest._fields[:3], asked, strict=False)
        }
        inputs = {**grouped, "rows": asked.rows, "asked": asked.asked, **memory}
        (logits,) = self.graph("step").run(None, inputs)
        return np.asarray(logits)

    def choose(
        self,
        logits: np.ndarray,
        added: np.ndarray | None = None,
        image_free: np.ndarray | None = None,
        scale: float = 1.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest token (B, n) and its log-probability, see `model.protocol.DenoisingSteps`."""
        if added is None:
            added = np.zeros((len(logits), self.mask_id), dtype=np.float32)
        arrays = {"logits": logits, "added": added}
        if image_free is None:
            chosen, log_probability = self.graph("choose").run(None, arrays)
        else:
            arrays.update(image_free=image_free, scale=np.array(scale, dtype=np.float32))
            chosen, log_probability = self.graph("guided_choose").run(None, arrays)
        return chosen, log_probability


class OnnxSteps:
    """A denoiser at work on captions of I images; see `model.protocol.DenoisingSteps`.

    MASK tokens to which nobody attends are computed only where they are asked for, and padding never. The
    image-free branch of one image runs in the call of the other branch, which reads the weights once.
    That of several is a call of its own: they all share one small memory, and captions that are alike, as all
    are before the first step, are computed once.

    Args:
        model: whose graphs run.
        features: of I images.
        with_image_free: whether logits without the image are wanted too.
    """

    self_conditions = False  # graphs are written of models that do not

    def __init__(self, model: OnnxModel, features: ImageFeatures, with_image_free: bool) -> None:
        self._model, self.vocabulary_size = model, model.mask_id
        self._hidden = model.mask_id if model.config.model.concentrated_attention else None
        self._images = features.images
        memory = model.graph("memory")
        found = dict(
            zip(
                (one.name for one in memory.get_outputs()),
                memory.run(None, _inputs_of(features)),
                strict=True,
            )
        )
        self._memory = {name: part for name, part in found.items() if not name.startswith(_FREE)}
        self._free = None
        if with_image_free:
            self._free = {name: found[_FREE + name] for name in self._memory}
            if self._images == 1:
                self._memory = {name: _joined(part, self._free[name]) for name, part in self._memory.items()}

    def logits(
        self,
        tokens: np.ndarray,
        timestep: np.ndarray,
        lengths: np.ndarray,
        positions: np.ndarray,
        guess: np.ndarray | None = None,  # noqa: ARG002 (there is none, see `self_conditions`)
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits (B, n, V) with the image and, if it was asked for, without."""
        logits, image_free, which = self._run(tokens, timestep, lengths, positions)
        return logits[which], None if image_free is None else image_free[which]

    def _run(
        self, tokens: np.ndarray, timestep: np.ndarray, lengths: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Logits (N, V) of what is asked for, with and without the image, and which are those of (B, n)."""
        asked = (tokens, timestep, lengths, positions)
        request, which = StepRequest.at(*asked, self._hidden)
        if self._free is None:
            return self._model.step_logits(request, self._images, self._memory), None, which
        if self._images == 1:
            both = self._model.step_logits(StepRequest.joined([request, request], [1, 1]), 2, self._memory)
            own, free = np.split(both, 2)
            return own, free, which
        logits = self._model.step_logits(request, self._images, self._memory)
        together = np.concatenate([one.reshape(len(tokens), -1) for one in asked], axis=1)
        _, first, same = np.unique(together, axis=0, return_index=True, return_inverse=True)
        # without the image all captions are of the same: of none
        alike, which_alike = StepRequest.at(
            tokens[first], timestep[first], lengths[first], positions[first], self._hidden
        )
        image_free = self._model.step_logits(alike, 1, self._free)
        numbers = np.zeros(len(logits), dtype=np.int64)
        numbers[which] = which_alike[same.reshape(-1)]
        return logits, image_free[numbers], which

    def likeliest(
        self,
        tokens: np.ndarray,
        timestep: np.ndarray,
        lengths: np.ndarray,
        positions: np.ndarray,
        added: np.ndarray | None = None,
        scale: float = 1.0,
        guess: np.ndarray | None = None,  # noqa: ARG002 (there is none, see `self_conditions`)
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `model.protocol.DenoisingSteps`."""
        logits, image_free, which = self._run(tokens, timestep, lengths, positions)
        rows = np.zeros(len(logits), dtype=np.int64)  # of `added`: each position's caption
        rows[which] = np.arange(len(tokens))[:, None]
        chosen, log_probability = self._model.choose(
            logits[:, None],
            None if added is None else added[rows],
            None if image_free is None else image_free[:, None],
            scale,
        )
        return chosen[:, 0][which], log_probability[:, 0][which]


class OnnxJudge:
    """Reads finished captions of I images from left to right.

    Args:
        model: whose graphs run.
        features: of I images.
    """

    def __init__(self, model: Any, features: ImageFeatures) -> None:
        self._model, self._features = model, features

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """(B, L) log p(token | tokens before it, image) of captions `tokens` (B, L), grouped by image."""
        images = self._features.images
        grouped = np.ascontiguousarray(tokens).reshape(images, len(tokens) // images, -1)
        graph = self._model.graph("judge")
        wanted = {one.name for one in graph.get_inputs()}
        inputs = {name: value for name, value in _inputs_of(self._features).items() if name in wanted}
        (found,) = graph.run(None, {"tokens": grouped, **inputs})
        return np.asarray(found).reshape(tokens.shape)


_FREE = "free_"  # begins the names of what the image-free memory gives


def _joined(part: np.ndarray, image_free: np.ndarray) -> np.ndarray:
    """A part of an image's memory and of the image-free one, of perhaps fewer positions, as two images."""
    space = [(0, own - free) for own, free in zip(part.shape, image_free.shape, strict=True)]
    return np.concatenate([part, np.pad(image_free, space)])


def _inputs_of(features: ImageFeatures) -> dict[str, np.ndarray]:
    inputs = {"memory": features.memory, "summary": features.summary}
    if features.concepts is not None:
        inputs.update(concepts=features.concepts.ids, confidences=features.concepts.confidences)
    return inputs


class _Weights:
    """The weights of a folder in the forms that graphs ask for.

    Those of one graph at a time: the file is never all in memory, and a graph keeps what it needs.
    """

    def __init__(self, folder: Path) -> None:
        self.path, list_path = folder / WEIGHTS_NAME, folder / GRAPHS_NAME
        if not list_path.is_file():
            raise CheckpointError(
                f"{folder}: has no ONNX graphs (no {GRAPHS_NAME}); write them with 'ddcap export --onnx'"
            )
        try:
            self.graphs = json.loads(list_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{folder}: damaged ({reason}); copy the model again") from None

    def of(self, graph: str) -> tuple[list[str], list[Any]]:
        """Names of a graph's constants, and their values for ONNX Runtime."""
        import onnxruntime
        from safetensors import safe_open

        names, values = [], []
        with safe_open(self.path, framework="np") as file:
            stored = set(file.keys())
            for constant, (name, form, is_transposed) in self.graphs[graph].items():
                scale = file.get_tensor(name + SCALE) if name + SCALE in stored else None
                value = _in_form(file.get_tensor(name), scale, form)
                value = np.ascontiguousarray(value.T if is_transposed else value)
                names.append(constant)
                values.append(onnxruntime.OrtValue.ortvalue_from_numpy(value))
        return names, values


def _in_form(stored: np.ndarray, scale: np.ndarray | None, form: str) -> np.ndarray:
    """A weight as float32 ("value"), or the integers of a product or their scales.

    Graphs of early exports call these "int8" and "scale", and want them larger than products may be.
    """
    if form == "value":
        return np.asarray(in_float32(stored, scale))
    if scale is None:
        how = quantise_factor if form in (FACTOR, FACTOR_SCALE) else quantise
        stored, scale = how(stored.astype(np.float32))
    return scale if form in (FACTOR_SCALE, "scale") else stored


def _load_graph(folder: Path, name: str, weights: _Weights, threads: int | None) -> Any:
    import onnxruntime

    path = folder / f"{name}.onnx"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; write the graphs with 'ddcap export --onnx'")
    options = session_options(threads)
    try:
        names, values = weights.of(name)
        options.add_external_initializers(names, values)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.kept = values  # they lie in numpy's memory, which has to stay as long as the session
        return session
    except Exception as error:  # ONNX Runtime has an exception for each of its states, under no common name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: damaged, or from other weights ({reason}); export the model again"
        ) from None
