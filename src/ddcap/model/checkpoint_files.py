"""A model's files: weights and config are written to a folder, checked and read.

Files of weights may be from strangers: they are looked at before anything is allocated, and never run.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddcap.arrays import like
from ddcap.data.concepts import ConceptSpelling, ConceptTokens, ConceptVocabulary
from ddcap.data.images import Preprocessing
from ddcap.data.persons import Persons
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import CheckpointError, DDCapError
from ddcap.files import announce_download, replacing, write_text
from ddcap.model.config import CONFIG_NAME, ENCODER_NAME, WEIGHTS_NAME, ModelConfig, read_config
from ddcap.model.detector import Detector
from ddcap.model.encoders import CLIP_ARCHITECTURE, ImageEncoder, build_image_encoder, read_clip_architecture
from ddcap.model.features import ImageFeatures, PreparedImages
from ddcap.model.generation_config import GENERATION_CONFIG_NAME
from ddcap.model.quantization import SCALE, in_float32, quantise_state
from ddcap.settings import EncoderSettings, ModelSettings

# Files of weights, which may be from strangers: looked at before anything is allocated, and never run.

Shapes = Mapping[str, tuple[int, ...]]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file by name, from its header, which was compared with the file's length.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); copy the model again") from None
    scales = {name: shapes.pop(name) for name in list(shapes) if name.endswith(SCALE)}
    for name, shape in scales.items():
        if shape != shapes.get(name.removesuffix(SCALE), ())[:1]:
            raise CheckpointError(
                f"{path}: damaged (no weight has the shape of {name}, {shape}); copy the model again"
            )
    return shapes


def check_shapes(expected: Shapes, found: Shapes) -> None:
    """Compare a model's weights with a file's.

    Raises:
        RuntimeError: if names or shapes do not fit.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} {found[name]} for {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if missing or unexpected or misshapen:
        raise RuntimeError(f"missing {missing[:3]}, unexpected {unexpected[:3]}, misshapen {misshapen[:3]}")


def load_pickle(path: Path, remedy: str) -> Any:
    """Load what `torch.save` wrote, tensors and plain values only, onto the CPU.

    Args:
        path: of the file.
        remedy: for the message.

    Raises:
        CheckpointError: if it holds anything else, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickles that torch has not written; they are refused anyhow
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises to load it all the same
        reason = "it holds more than weights, which could run code here, or none at all"
    except Exception as error:  # torch raises many kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise CheckpointError(f"{path}: damaged or truncated ({reason}); {remedy}")


# A model without weights, to compare a config with a file before anything is downloaded or allocated.
# Everything here happens on torch's "meta" device, which knows shapes only.


class FrozenEncoderOutline(ImageEncoder):
    """Stands for an encoder whose weights are elsewhere: a file's shapes tell what it has to give.

    Sizes that the model makes no use of are 0.

    Args:
        shapes: of the model's file of weights.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.memory_width = _size(shapes, "memory_projection.0.weight", 1)
        # with concepts the image-free memory is one position, whatever an image has
        sees_concepts = "concept_embedding.pieces" in shapes
        self.memory_positions = 0 if sees_concepts else _size(shapes, "image_free_memory", 0)
        self.summary_width = _size(shapes, "length_head.mlp.0.weight", 1)

    def check_clip(self, architecture: dict[str, Any]) -> None:
        """Compare with a published CLIP, before its weights are read.

        Raises:
            RuntimeError: if they do not fit.
        """
        side = architecture["image_size"] // max(1, architecture["patch_size"])
        expected = {
            "number of vectors": (self.memory_positions, side * side),
            "memory width": (self.memory_width, architecture["hidden_size"]),
            "summary width": (self.summary_width, architecture["projection_dim"]),
        }
        for name, (ours, theirs) in expected.items():
            if ours and ours != theirs:
                raise RuntimeError(f"its encoder gives a {name} of {theirs}, the weights expect {ours}")


class _Undrawn(TorchFunctionMode):
    """Weights stay undrawn, since they are read from a file next, or have no values at all.

    On the meta device torch imports its compiler, which takes a second, to draw no numbers.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        if function in (Tensor.normal_, Tensor.uniform_):
            return arguments[0]
        if getattr(function, "__module__", None) == nn.init.__name__:
            return arguments[0] if arguments else keywords["tensor"]
        if function is torch.eye and "out" in keywords:
            return keywords["out"]
        if function is torch.randn:
            return torch.empty(*arguments, **keywords)
        return function(*arguments, **keywords)


def check_outline(
    build: Callable[[ImageEncoder], Any],
    encoder: EncoderSettings,
    model: ModelSettings,
    shapes: Shapes,
    architecture: dict[str, Any] | None,
    concepts: int = 0,
) -> None:
    """Compare what a config describes with the weights there are.

    Args:
        build: a model of the config around an encoder.
        encoder: the config's section.
        model: the config's section.
        shapes: of the model's file of weights.
        architecture: of an encoder that travels with the model, if its name alone is not enough.
        concepts: how many its tagger knows; the tagger is always in the model's file.

    Raises:
        RuntimeError: if they do not fit, or the config describes no model at all.
    """
    try:
        # a layer has tensors of its own, so there are no more layers than tensors: the loops below end soon
        layers = max(model.layers, int((architecture or {}).get("num_hidden_layers", 0)))
        if layers > len(shapes):
            raise RuntimeError(f"{layers} layers for {len(shapes)} tensors")
        with torch.device("meta"), _Undrawn():
            outline = build(
                build_image_encoder(encoder, pretrained=False, architecture=architecture, concepts=concepts)
                if encoder.travels or encoder.concepts
                else FrozenEncoderOutline(shapes)
            )
        expected = {name: tuple(value.shape) for name, value in outline.stored_state().items()}
    except DDCapError:
        raise
    except Exception as error:  # sizes from strangers make the libraries raise whatever they trip over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"these settings make no model: {reason}") from None
    check_shapes(expected, shapes)


def _size(shapes: Shapes, name: str, dimension: int) -> int:
    """A size of a tensor, 0 if it is not there: `check_shapes` will say so."""
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else 0


_PUBLISHED_PREFIX = (
    "encoder.network."  # a frozen encoder's published weights: whoever loads the model has them
)
_Model = TypeVar("_Model", bound="StoredModel")


class StoredModel(nn.Module):
    """A captioning model that knows its config and how to be written and read.

    Args:
        config: the model's settings.
        encoder: an image encoder; None builds the one `config` names, with its published weights.
    """

    kind: ClassVar[str]

    def __init__(self, config: ModelConfig, encoder: ImageEncoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.vocabulary: ConceptVocabulary | None = None
        self.tokenizer: CaptionTokenizer | None = None
        self.detector: Detector | None = None
        self._spelling: ConceptSpelling | None = None
        self.encoder = encoder or build_image_encoder(config.encoder, concepts=config.concepts)

    def set_vocabulary(self, vocabulary: ConceptVocabulary, tokenizer: CaptionTokenizer) -> None:
        """Take over the words of the concepts, and how the tokenizer spells them."""
        self._know_words(vocabulary, tokenizer)
        embedding: Any = self.concept_embedding
        embedding.set_pieces([tokenizer.encode_part(word) for word in vocabulary.words])

    def _know_words(self, vocabulary: ConceptVocabulary, tokenizer: CaptionTokenizer) -> None:
        self.vocabulary, self.tokenizer, self._spelling = vocabulary, tokenizer, None

    @property
    def spelling(self) -> ConceptSpelling | None:
        """The spelling of the concepts' words; None without concepts."""
        if self._spelling is None and self.vocabulary is not None and self.tokenizer is not None:
            self._spelling = ConceptSpelling.of(self.vocabulary, self.tokenizer)
        return self._spelling

    @property
    def mask_id(self) -> int:
        """V, the id of the MASK state: a position that has no word yet."""
        return self.config.vocabulary_size

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from an image to pixels."""
        return self.encoder.preprocessing

    def as_array(self, values: np.ndarray) -> Tensor:
        """Numbers as a tensor where the weights are."""
        return like(values, next(self.parameters()))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def stored_state(self) -> dict[str, Tensor]:
        """The weights that travel with the model: all, less those of a frozen encoder."""
        trained = self.config.encoder.travels
        return {
            name: value
            for name, value in self.state_dict().items()
            if trained or not name.startswith(_PUBLISHED_PREFIX)
        }

    def integer_products(self) -> dict[str, nn.Linear | nn.Embedding]:
        """Name the layers whose products int8 graphs compute with integers; none without graphs."""
        return {}

    def load_stored_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `stored_state`.

        Raises:
            RuntimeError: if names or shapes do not fit.
        """
        check_shapes(*(_shapes(either) for either in (self.stored_state(), state)))
        self.load_state_dict(state, strict=False)  # not strict: a frozen encoder has its weights already

    @torch.no_grad()
    def _read_weights(self, path: Path, shapes: Shapes) -> None:
        """Fill the weights from a file, one after the other, so that memory holds the model only once."""
        state = self.stored_state()
        check_shapes(_shapes(state), shapes)
        with safe_open(path, framework="pt") as file:
            scales = {name for name in file.keys() if name.endswith(SCALE)}  # noqa: SIM118
            for name, value in state.items():
                stored, scale = file.get_tensor(name), name + SCALE
                value.copy_(in_float32(stored, file.get_tensor(scale)) if scale in scales else stored)

    def prepare(self, pixels: np.ndarray | Tensor) -> PreparedImages:
        """Prepare pixels (I, 3, H, W) on the CPU; any thread may, while the model is at work."""
        values = pixels.cpu().numpy() if isinstance(pixels, Tensor) else pixels
        tensor = torch.from_numpy(np.array(values))  # a copy: it can be written to
        return PreparedImages(tensor.pin_memory() if self.device.type == "cuda" else tensor)

    @torch.no_grad()
    def encode_prepared(self, images: PreparedImages) -> ImageFeatures:
        """Features of I images, where the model computes; float32, whatever autocast is on."""
        features: ImageFeatures = self.encoder(images.pixels.to(self.device, non_blocking=True))
        assert features.memory is not None and features.summary is not None
        features = ImageFeatures(features.memory.float(), features.summary.float(), features.concepts)
        if self.detector is None:
            return features
        persons, concepts = self.detector(images.pixels.numpy(), features.summary.cpu().numpy())
        persons = Persons(*(self.as_array(part) for part in vars(persons).values()))
        if concepts is not None:
            concepts = ConceptTokens(self.as_array(concepts.ids), self.as_array(concepts.confidences))
        return features.looked_at(persons, concepts)

    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        """Features of pixels (I, 3, H, W), see `encode_prepared`."""
        return self.encode_prepared(self.prepare(pixels))

    def carry_encoder(self) -> None:
        """From now on the encoder's weights are stored with the model; nothing else is needed to load it."""
        self.config = replace(self.config, encoder=replace(self.config.encoder, stored=True))
        self.encoder.fold()

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, config: ModelConfig | None = None
    ) -> None:
        """Write `config.json` (the model's own, or `config`) and `model.safetensors` into `folder`.

        Save the tokenizer beside them. With `dtype` int8 the large matrices are integers with a scale for
        each output, see `model/quantization.py`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.stored_state()
        if dtype == torch.int8:
            arrays = {name: value.detach().cpu().numpy() for name, value in state.items()}
            factors = {f"{name}.weight" for name in self.integer_products()}
            stored = quantise_state(arrays, factors)
            state = {name: torch.from_numpy(value) for name, value in stored.items()}
        else:
            state = {
                name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()
            }
        state = {name: value.contiguous() for name, value in state.items()}
        with replacing(folder / WEIGHTS_NAME) as temporary:
            save_file(state, temporary)
        (folder / GENERATION_CONFIG_NAME).unlink(missing_ok=True)  # of another model, it would go first
        write_text(folder / CONFIG_NAME, json.dumps((config or self.config).to_dict(), indent=2) + "\n")
        if self.vocabulary is not None:
            self.vocabulary.save(folder)
        if self.detector is not None:
            self.detector.save(folder)
        if self.config.encoder.travels and self.encoder.architecture is not None:
            write_text(folder / ENCODER_NAME, json.dumps(self.encoder.architecture, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls: type[_Model], folder: str | Path) -> _Model:
        """Read what `save_pretrained` wrote; evaluation mode, float32.

        The folder may be from a stranger: what its config describes is compared with the weights that are
        there before anything is downloaded or allocated, and an encoder from elsewhere is announced.

        Raises:
            CheckpointError: if a file is missing, damaged, does not fit, or is of another kind of model.
        """
        folder = Path(folder)
        config, config_path, weights_path = read_config(folder), folder / CONFIG_NAME, folder / WEIGHTS_NAME
        if config.model.kind != cls.kind:
            raise CheckpointError(
                f"{config_path}: is a model of kind {config.model.kind!r}, not {cls.kind!r}; give one of "
                "that kind"
            )
        shapes = read_shapes(weights_path)
        architecture = _read_architecture(config.encoder, folder)
        try:
            check_outline(
                lambda encoder: cls(config, encoder),
                config.encoder,
                config.model,
                shapes,
                architecture,
                config.concepts,
            )
            if config.encoder.kind == "clip" and not config.encoder.travels:
                announce_download(str(folder), "image encoder", config.encoder.name, config.encoder.revision)
                FrozenEncoderOutline(shapes).check_clip(read_clip_architecture(config.encoder))
            encoder = build_image_encoder(
                config.encoder,
                pretrained=not config.encoder.travels,
                architecture=architecture,
                concepts=config.concepts,
            )
            with _Undrawn():  # all that is drawn is stored, which `_read_weights` checks
                model = cls(config, encoder)
            model._read_weights(weights_path, shapes)
        except RuntimeError as error:
            raise CheckpointError(
                f"{weights_path}: does not fit {config_path} ({error}); copy the model again"
            ) from None
        if config.concepts:
            model._know_words(ConceptVocabulary.load(folder), CaptionTokenizer.load(folder))
        if config.persons:
            model.detector = Detector.load(folder)
        return model.eval()


def _read_architecture(settings: EncoderSettings, folder: Path) -> dict[str, Any] | None:
    """Of a CLIP whose weights travel with the model; None of other encoders.

    An early model has no file of it; its CLIP is asked for by name then.
    """
    if not settings.travels or settings.kind != "clip":
        return None
    path = folder / ENCODER_NAME
    if not path.exists():
        announce_download(str(folder), "image encoder", settings.name, settings.revision)
        return read_clip_architecture(settings)
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        return {name: values[name] for name in CLIP_ARCHITECTURE if name in values}
    except (OSError, ValueError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: damaged; copy the model again") from None


def _shapes(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}
