"""Denoising steps of fixed shapes, recorded once as CUDA graphs and replayed.

A pass of few captions is some hundred small kernels, which Python starts one by one while the GPU waits. A
CUDA graph starts them all at once. It replays the same kernels on the same memory, so a pass is recorded for
each shape, a little larger than what is asked for: the rest is padding, which nobody reads.

Shapes: I images, K captions of each, B captions (B = I * K), L caption positions, n of them asked for, V
words.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddcap.model.blocks import MemoryKeysValues
from ddcap.model.ddcap import DDCapModel, TorchSteps
from ddcap.model.features import ImageFeatures

LARGEST = 4096
"""Caption positions of a pass that is recorded, at most: more of them keep a GPU busy in any case."""

MOST = 256
"""Passes that are recorded; those of further shapes are started kernel by kernel."""

logger = logging.getLogger("ddcap")

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class PassShape:
    """The numbers that a recorded pass is for: I, K, L and n."""

    images: int
    per_image: int
    length: int
    asked: int

    @classmethod
    def around(cls, images: int, per_image: int, length: int, asked: int, longest: int) -> PassShape:
        """Choose the next larger shape, of few: powers of two, and lengths that are multiples of four.

        Args:
            images: I.
            per_image: K.
            length: L.
            asked: n.
            longest: L of the longest caption that the model has positions for.
        """
        length = min(-(-length // 4) * 4, longest)
        images, per_image, asked = (1 << (number - 1).bit_length() for number in (images, per_image, asked))
        return cls(images, per_image, length, min(asked, length))

    @property
    def captions(self) -> int:
        """B."""
        return self.images * self.per_image


class StaticDecoder:
    """Makes `DenoisingSteps` that replay recorded passes of a model.

    Threads may share it: a pass is theirs from its inputs to its outputs. What cannot be recorded is computed
    as without it; the first failure is logged.

    Args:
        model: in evaluation mode, on its device. Its weights must not change any more.
    """

    def __init__(self, model: DDCapModel) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._fails = False
        self._weights: dict[torch.dtype | None, _FixedWeights] = {}
        self._memories: dict[Hashable, _FixedMemory] = {}
        self._passes: dict[Hashable, _RecordedPass] = {}
        self._pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None

    @torch.no_grad()
    def steps(self, features: ImageFeatures, *, with_image_free: bool) -> StaticSteps:
        """The denoiser at work on captions of these images, see `model.protocol.DenoisingSteps`."""
        return StaticSteps(self, self.model.project_memory(features), with_image_free=with_image_free)

    @property
    def recorded(self) -> int:
        """The number of passes recorded so far."""
        return len(self._passes)

    @torch.no_grad()
    def replay(self, steps: StaticSteps, what: _What, inputs: dict[str, Tensor]) -> Outputs | None:
        """Compute a pass by its recording, made now if there is none; None if there cannot be one.

        Args:
            steps: with the images' keys and values.
            what: is computed.
            inputs: tokens (B, L), timestep (B,), lengths (B,), positions (B, n), and what else there is.
        """
        (captions, length), asked = inputs["tokens"].shape, inputs["positions"].shape[1]
        per_image = captions // steps.images
        longest = self.model.denoiser.position_embedding.num_embeddings
        shape = PassShape.around(steps.images, per_image, length, asked, longest)
        branches = 2 if steps.with_image_free else 1
        if self._fails or branches * shape.captions * shape.length > LARGEST:
            return None
        with self._lock:
            found = self._pass_of(steps, what, shape, inputs)
            if found is None:
                return None
            found.memory.hold(steps)
            found.put(inputs, steps.images)
            return found.outputs(steps.images, per_image, asked)

    def _pass_of(
        self, steps: StaticSteps, what: _What, shape: PassShape, inputs: dict[str, Tensor]
    ) -> _RecordedPass | None:
        casting = _casting(self.model.device)
        keys = steps.keys_values.layers[0][0]
        kind = (shape.images, steps.with_image_free, casting, keys.shape[1:], keys.dtype)
        key = (kind, shape, what, tuple(inputs))
        if key in self._passes or len(self._passes) >= MOST:
            return self._passes.get(key)
        try:
            weights = self._weights.get(casting) or _FixedWeights(self.model, casting)
            memory = self._memories.get(kind) or _FixedMemory(steps, shape.images, weights)
            made = _RecordedPass(self, weights, memory, what, shape, inputs)
        except RuntimeError as error:  # torch's own, of CUDA and of too little memory among them
            logger.warning(
                "CUDA graphs: a pass cannot be recorded (%s); decoding goes on without them, more slowly",
                str(error).partition("\n")[0],
            )
            self._fails = True
            return None
        self._weights[casting], self._memories[kind], self._passes[key] = weights, memory, made
        return made

    def record(self, compute: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Record a computation on fixed memory; what is returned repeats it, into the same outputs.

        On a device without CUDA graphs it is computed anew.

        Raises:
            RuntimeError: if it waits for the GPU, or does something else that no graph can hold.
        """
        if self._pool is None:
            return compute
        with torch.cuda.device(self.model.device):
            aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):  # libraries set themselves up, and blocks are compiled, before
                for _ in range(2):
                    compute()
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                # other threads may use the GPU meanwhile. All graphs share the memory of what lies in
                # between: outputs are copied before the next one runs
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    outputs = compute()
            except BaseException:
                torch.cuda.set_stream(current)  # a recording that fails leaves its own behind
                raise

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


@dataclass(frozen=True)
class _What:
    """The output of a pass: the likeliest words by this guidance, or None: logits."""

    scale: float | None = None


class StaticSteps:
    """A denoiser at work on captions of I images, by recorded passes; see `StaticDecoder`.

    Args:
        decoder: of the model.
        keys_values: of I images.
        with_image_free: whether logits without the image are wanted too.
    """

    def __init__(
        self, decoder: StaticDecoder, keys_values: MemoryKeysValues, *, with_image_free: bool
    ) -> None:
        model = decoder.model
        self._decoder, self.keys_values, self.with_image_free = decoder, keys_values, with_image_free
        self.images = keys_values.layers[0][0].shape[0]
        self.vocabulary_size = model.config.vocabulary_size
        self.self_conditions = model.config.model.self_conditioning
        self._unrecorded: TorchSteps | None = None

    def logits(
        self,
        tokens: Tensor,
        timestep: Tensor,
        lengths: Tensor,
        positions: Tensor,
        guess: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `model.protocol.DenoisingSteps`."""
        inputs = _given(tokens=tokens, timestep=timestep, lengths=lengths, positions=positions, guess=guess)
        found = self._decoder.replay(self, _What(), inputs)
        if found is None:
            return self._plain.logits(**inputs)
        return found[0], found[1] if self.with_image_free else None

    def likeliest(
        self,
        tokens: Tensor,
        timestep: Tensor,
        lengths: Tensor,
        positions: Tensor,
        added: Tensor | None = None,
        scale: float = 1.0,
        guess: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `model.protocol.DenoisingSteps`."""
        inputs = _given(tokens=tokens, timestep=timestep, lengths=lengths, positions=positions)
        inputs |= _given(added=added, guess=guess)
        found = self._decoder.replay(self, _What(scale), inputs)
        if found is None:
            return self._plain.likeliest(**inputs, scale=scale)
        chosen, log_probability = found
        return chosen, log_probability

    @property
    def _plain(self) -> TorchSteps:
        """The same steps, started kernel by kernel."""
        if self._unrecorded is None:
            model, keys_values = self._decoder.model, self.keys_values
            self._unrecorded = TorchSteps(model, keys_values, with_image_free=self.with_image_free)
        return self._unrecorded


def _given(**inputs: Tensor | None) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if value is not None}


def _casting(device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in; None if it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


class _FixedWeights:
    """The weights of a model, and all else that its images share, in one precision.

    Autocast keeps its copies of weights until its context ends, and a graph would read them afterwards. So
    these are copies of its own.

    Args:
        model: of the weights.
        casting: see `_casting`, with which it is called.
    """

    @torch.no_grad()
    def __init__(self, model: DDCapModel, casting: torch.dtype | None) -> None:
        self.casting = casting
        self.scale_shift = model.denoiser.adaln_scale_shift()
        self.image_free = model.image_free_keys_values()
        head = model.denoiser.token_embedding.weight
        self.head = head if casting is None else head.to(casting)
        self.linear: dict[str, Tensor] = {}
        before = ("key_value", "linear")  # a pass is given what comes of these: keys, values, scale and shift
        for name, layer in model.named_modules():
            is_used = name.startswith("denoiser.blocks.") and name.rpartition(".")[2] not in before
            if casting is not None and is_used and isinstance(layer, nn.Linear):
                for part, value in layer.named_parameters():
                    self.linear[f"{name}.{part}"] = value.to(casting)


class _FixedMemory:
    """Keys and values of some images in memory that stays where it is; those of one batch at a time.

    Args:
        steps: of the first batch.
        images: room for these.
        weights: of the model.
    """

    @torch.no_grad()
    def __init__(self, steps: StaticSteps, images: int, weights: _FixedWeights) -> None:
        given = steps.keys_values
        layers = tuple(
            (key.new_zeros((images, *key.shape[1:])), value.new_zeros((images, *value.shape[1:])))
            for key, value in given.layers
        )
        mask = None if given.mask is None else given.mask.new_ones((images, *given.mask.shape[1:]))
        self.keys_values, self.with_image_free = MemoryKeysValues(layers, mask), steps.with_image_free
        if steps.with_image_free:
            self.keys_values = self.keys_values.followed_by(weights.image_free.expand(images))
        self._holder: weakref.ref[StaticSteps] | None = None

    def hold(self, steps: StaticSteps) -> None:
        """Take over the keys and values of a batch, unless they are there."""
        if self._holder is not None and self._holder() is steps:
            return
        own, new = self.keys_values, steps.keys_values
        for (key, value), (new_key, new_value) in zip(own.layers, new.layers, strict=True):
            key[: steps.images].copy_(new_key)
            value[: steps.images].copy_(new_value)
        if own.mask is not None and new.mask is not None:
            own.mask[: steps.images].copy_(new.mask)
        self._holder = weakref.ref(steps)


class _FixedSteps(TorchSteps):
    """Steps on fixed memory with fixed weights.

    Args:
        model: of the weights.
        memory: of the images.
        weights: of the model.
    """

    def __init__(self, model: DDCapModel, memory: _FixedMemory, weights: _FixedWeights) -> None:
        self.model, self.with_image_free, self.weights = model, memory.with_image_free, weights
        self.keys_values, self.scale_shift = memory.keys_values, weights.scale_shift

    def _states(self, *arguments: Any, **keywords: Any) -> Tensor:
        states: Tensor = functional_call(self.model, self.weights.linear, arguments, keywords)
        return states

    def _words(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weights.head)


class _RecordedPass:
    """A pass of one shape: its inputs, the recording, its outputs.

    Args:
        decoder: records it.
        weights: of the model.
        memory: of the images.
        what: is computed.
        shape: of the pass.
        inputs: of its first use.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoder: StaticDecoder,
        weights: _FixedWeights,
        memory: _FixedMemory,
        what: _What,
        shape: PassShape,
        inputs: dict[str, Tensor],
    ) -> None:
        self.memory, self.shape = memory, shape
        columns = {"tokens": shape.length, "guess": shape.length, "positions": shape.asked}
        self.inputs = {
            # 0 is a word, a position, a timestep, and, for a length, an empty caption
            name: value.new_zeros((shape.captions, *(columns.get(name, size) for size in value.shape[1:])))
            for name, value in inputs.items()
        }
        steps = _FixedSteps(decoder.model, memory, weights)
        device, casting = decoder.model.device.type, weights.casting

        @torch.no_grad()
        def compute() -> Outputs:
            with torch.autocast(device, casting, enabled=casting is not None, cache_enabled=False):
                if what.scale is not None:
                    return steps.likeliest(**self.inputs, scale=what.scale)
                return tuple(one for one in steps.logits(**self.inputs) if one is not None)

        self._replay = decoder.record(compute)

    def put(self, inputs: dict[str, Tensor], images: int) -> None:
        """Copy the inputs of captions of some images to where the recording reads them."""
        if "guess" in self.inputs:
            self.inputs["guess"].fill_(-1)  # there is none behind shorter captions
        for name, value in inputs.items():
            new = value.unflatten(0, (images, -1))  # (I, K, ...)
            self._part(self.inputs[name], *new.shape[:3]).copy_(new)

    def outputs(self, images: int, per_image: int, asked: int) -> Outputs:
        """Replay the pass and copy what it says of these captions, (B, n) or (B, n, V)."""
        return tuple(
            self._part(one, images, per_image, asked)
            .clone(memory_format=torch.contiguous_format)
            .flatten(0, 1)
            for one in self._replay()
        )

    def _part(self, fixed: Tensor, images: int, per_image: int, columns: int | None = None) -> Tensor:
        """The part (I, K, ...) of captions of some images, of fixed memory for more of them."""
        part = fixed.unflatten(0, (self.shape.images, self.shape.per_image))[:images, :per_image]
        return part if columns is None else part[:, :, :columns]
