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
from ddcap.model.config import GRAPHS_NAME, WEIGHTS_NAME, read_config
from ddcap.model.features import ImageFeatures
from ddcap.model.quantization import SCALE, in_float32, quantise


class OnnxModel:
    """What decoding needs of a model, by ONNX Runtime on the CPU.

    Args:
        folder: with the graphs.
        precision: "float32", or "int8" for the denoiser's matrix products.
        threads: of one call; None takes all cores.

    Raises:
        CheckpointError: if a file is missing, damaged or does not fit.
    """

    def __init__(self, folder: str | Path, precision: str = "float32", threads: int | None = None) -> None:
        self.folder, self.precision, self.threads = Path(folder), precision, threads
        self.config = read_config(folder)
        self.tokenizer = CaptionTokenizer.load(folder)
        self.vocabulary = ConceptVocabulary.load(folder) if self.config.concepts else None
        weights = _Weights(self.folder)
        step = "step_int8" if precision == "int8" else "step"
        self._encoder, self._memory, self._step = (
            _load_graph(self.folder, name, weights, threads) for name in ("encoder", "memory", step)
        )
        self._length = None
        if self.config.model.length_prediction:
            self._length = _load_graph(self.folder, "length", weights, threads)

    @cached_property
    def _bulk(self) -> OnnxModel:
        return OnnxModel(self.folder, self.precision, threads=1)

    def for_bulk(self) -> OnnxModel:
        """The same on one core, for as many calls at once as there are cores; made when first asked for.

        Two cores on one small matrix gain little, and nothing where each has pictures of its own.
        """
        return self if self.threads == 1 else self._bulk

    @property
    def device(self) -> str:
        """Where it computes."""
        return "cpu"

    @property
    def mask_id(self) -> int:
        """V, the id of the MASK state."""
        return self.config.vocabulary_size

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes pixels."""
        return preprocessing_of(self.config.encoder)

    @cached_property
    def spelling(self) -> ConceptSpelling | None:
        """How the words of the concepts are spelled; None without concepts."""
        return None if self.vocabulary is None else ConceptSpelling.of(self.vocabulary, self.tokenizer)

    def as_array(self, values: np.ndarray) -> np.ndarray:
        """Numbers as they are."""
        return np.asarray(values)

    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        """Features of pixels (I, 3, H, W)."""
        memory, summary, *seen = self._encoder.run(None, {"pixels": pixels})
        return ImageFeatures(memory, summary, ConceptTokens(*seen) if seen else None)

    def length_logits(self, features: ImageFeatures) -> np.ndarray | None:
        """(I, max_length) length logits, or None without a length head."""
        if self._length is None:
            return None
        (logits,) = self._length.run(None, {"summary": features.summary})
        return np.asarray(logits)

    def denoising_steps(self, features: ImageFeatures, *, with_image_free: bool) -> OnnxSteps:
        """The denoiser at work on captions of these pictures, see `decoding.guidance.DenoisingSteps`."""
        return OnnxSteps(self._memory, self._step, features, with_image_free, self.mask_id)


class OnnxSteps:
    """A denoiser at work on captions of I images; see `decoding.guidance.DenoisingSteps`.

    Args:
        memory: the graph.
        step: the graph.
        features: of I images.
        with_image_free: whether logits without the image are wanted too.
        vocabulary_size: V.
    """

    def __init__(
        self, memory: Any, step: Any, features: ImageFeatures, with_image_free: bool, vocabulary_size: int
    ) -> None:
        self._step, self.vocabulary_size = step, vocabulary_size
        self._images = features.images
        names = ["keys", "values", "visible"]
        free = [f"free_{name}" for name in names] if with_image_free else []
        arrays = memory.run([*names, *free], _inputs_of(features))
        self._memory = dict(zip(names, arrays[:3], strict=True))
        self._free = dict(zip(names, arrays[3:], strict=True)) if free else None

    def logits(
        self, tokens: np.ndarray, timestep: np.ndarray, lengths: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits (B, n, V) with the image and, if it was asked for, without."""
        asked = (tokens, timestep, lengths, positions, None)
        (logits,) = self._run(["logits"], self._images, self._memory, *asked)
        if self._free is None:
            return logits, None
        # without the image all captions are of the same: of none
        (free,) = self._run(["logits"], 1, self._free, *asked)
        return logits, free

    def likeliest(
        self,
        tokens: np.ndarray,
        timestep: np.ndarray,
        lengths: np.ndarray,
        positions: np.ndarray,
        added: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest token (B, n) and its log-probability, after (B, V) was added to the logits."""
        wanted, asked = ["chosen", "log_probability"], (tokens, timestep, lengths, positions, added)
        chosen, log_probability = self._run(wanted, self._images, self._memory, *asked)
        return chosen, log_probability

    def _run(
        self,
        outputs: list[str],
        images: int,
        memory: Mapping[str, np.ndarray],
        tokens: np.ndarray,
        timestep: np.ndarray,
        lengths: np.ndarray,
        positions: np.ndarray,
        added: np.ndarray | None,
    ) -> list[np.ndarray]:
        captions = len(tokens)
        if added is None:
            added = np.zeros((captions, self.vocabulary_size), dtype=np.float32)
        per_caption = {
            "tokens": tokens,
            "timestep": timestep,
            "lengths": lengths,
            "positions": positions,
            "added": added,
        }
        grouped = {
            name: np.ascontiguousarray(value).reshape(images, captions // images, *value.shape[1:])
            for name, value in per_caption.items()
        }
        found = self._step.run(outputs, {**grouped, **memory})
        return [value.reshape(captions, *value.shape[2:]) for value in found]


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
                f"{folder}: has no ONNX graphs (no {GRAPHS_NAME}); write them by 'ddcap export --onnx'"
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
    """A weight as float32 ("value"), or its 8-bit integers ("int8") or their scales ("scale")."""
    if form == "value":
        return np.asarray(in_float32(stored, scale))
    pair = (stored, scale) if scale is not None else quantise(stored.astype(np.float32))
    return pair[0 if form == "int8" else 1]


def _load_graph(folder: Path, name: str, weights: _Weights, threads: int | None) -> Any:
    import onnxruntime

    path = folder / f"{name}.onnx"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; write the graphs by 'ddcap export --onnx'")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; they come as exceptions
    options.enable_cpu_mem_arena = threads == 1  # in bulk it saves time; for one picture it only takes memory
    # between two runs the threads of one graph would spin and take the cores from the next one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        names, values = weights.of(name)
        options.add_external_initializers(names, values)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.kept = values  # they lie in numpy's memory, which has to stay as long as the session
        return session
    except Exception as error:  # ONNX Runtime has an exception for each of its states, under no common name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged, or of other weights ({reason}); export again") from None
