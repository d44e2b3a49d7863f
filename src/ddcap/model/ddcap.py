"""The whole model: image encoder, memory projection, length head, denoiser.

Shapes: B captions, I images (B a multiple of I), L caption positions, P image positions, C encoder width, D
width, S summary width, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddcap.diffusion import Schedule, linear_schedule
from ddcap.model.attention_mask import causal_mask, self_attn_mask
from ddcap.model.blocks import MemoryKeysValues
from ddcap.model.checkpoint_files import StoredModel
from ddcap.model.concepts import ConceptEmbedding, memory_with_concepts
from ddcap.model.config import ModelConfig
from ddcap.model.denoiser import Denoiser
from ddcap.model.encoders import ImageEncoder
from ddcap.model.features import ImageFeatures
from ddcap.model.guidance import guide
from ddcap.model.judge import CausalJudge
from ddcap.model.layers import LengthHead, TanhMLP
from ddcap.model.packing import ChosenPacking, Packing
from ddcap.model.protocol import DenoisingSteps, StepsMaker


class DDCapModel(StoredModel):
    """Image and noised caption to a prediction of the clean caption (section 3 of the paper).

    Args:
        config: the model's settings.
        encoder: an image encoder; None builds the one `config` names, with its published weights.

    Attributes:
        static_decoder: makes the steps of decoding, if CUDA graphs are to be replayed; see `static_steps.py`.
    """

    kind: ClassVar[str] = "diffusion"
    static_decoder: StepsMaker | None = None

    def __init__(self, config: ModelConfig, encoder: ImageEncoder | None = None) -> None:
        super().__init__(config, encoder)
        settings = config.model
        self.memory_projection = TanhMLP(
            self.encoder.memory_width, settings.projection_hidden, settings.width
        )
        # with concepts one position is enough: it is seen beside an image's positions, not instead of them
        free_positions = 1 if config.concepts else self.encoder.memory_positions
        self.image_free_memory = nn.Parameter(torch.randn(free_positions, settings.width).mul_(0.02))
        self.concept_embedding = (
            ConceptEmbedding(config.concepts, settings.width) if config.concepts else None
        )
        self.denoiser = Denoiser(settings, config.vocabulary_size, config.diffusion.steps)
        self.judge = CausalJudge(settings) if settings.judge == "own" else None
        self.length_head = (
            LengthHead(self.encoder.summary_width, settings.length_hidden, settings.max_length)
            if settings.length_prediction
            else None
        )

    @property
    def schedule(self) -> Schedule:
        """The forward process the model was made for."""
        return linear_schedule(self.config.diffusion, self.config.vocabulary_size)

    def integer_products(self) -> dict[str, nn.Linear | nn.Embedding]:
        """The layers whose products int8 graphs compute with integers, by name.

        The embedding of the words is the head, too.
        """
        layers: dict[str, nn.Linear | nn.Embedding] = {}
        stacks: dict[str, Denoiser | CausalJudge | None] = {"denoiser": self.denoiser, "judge": self.judge}
        for stack, blocks in stacks.items():
            for number, block in enumerate(() if blocks is None else blocks.each_block()):
                for part in ("self_attention", "cross_attention", "mlp"):
                    for name, layer in getattr(block, part).named_children():
                        if isinstance(layer, nn.Linear):
                            layers[f"{stack}.blocks.{number}.{part}.{name}"] = layer
        return {**layers, "denoiser.token_embedding": self.denoiser.token_embedding}

    def forward(
        self,
        noised_tokens: Tensor,
        timestep: Tensor,
        lengths: Tensor,
        keys_values: MemoryKeysValues,
        scale_shift: Sequence[Sequence[Tensor]] | Tensor | None = None,
        guess: Tensor | None = None,
        is_read: Tensor | None = None,
        asked: Tensor | ChosenPacking | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D) of noised captions, which `denoiser.logits` turns into p(x_0 | x_t, y).

        Args:
            noised_tokens: (B, L) x_t.
            timestep: (B,) t.
            lengths: (B,) tokens of each caption, end token included; what lies behind is not read, unless
                `model.padding` says so (then L is max_length, for a caption not to depend on its batch).
            keys_values: of I images, see `keys_values`; the B captions are grouped by image.
            scale_shift: of `Denoiser.adaln_scale_shift`, where it is known.
            guess: (B, L' <= L) for models with `model.self_conditioning`, words that were predicted before;
                -1 is none.
            is_read: (B,) captions that a shared judge reads: `noised_tokens` are those of `shifted`, and
                every position sees only itself and those before it.
            asked: (B, n) positions whose states (B, n, D) are wanted, not in training, or n of those of a
                chosen packing, for states (n, D); None: all.
            packing: of the positions to compute; None computes the real ones in training, else all, since
                captions that are decoded together are about as long.
        """
        positions = torch.arange(noised_tokens.shape[1], device=noised_tokens.device)
        is_padding = positions >= lengths.unsqueeze(1)  # (B, L)
        if self.config.model.padding == "known":
            noised_tokens = torch.where(is_padding, 0, noised_tokens)  # one word's input vector for all of it
        if self.config.model.padding != "hidden":
            is_padding = torch.zeros_like(is_padding)
        attn_mask = self_attn_mask(
            is_mask=noised_tokens == self.mask_id,
            is_padding=is_padding,
            concentrated=self.config.model.concentrated_attention,
        )
        if is_read is not None:
            causal = causal_mask(noised_tokens.shape[1], noised_tokens.device)
            reads = is_read.view(-1, 1, 1)
            attn_mask = (reads & causal) | (~reads & attn_mask)  # ONNX Runtime cannot choose between booleans
        following = None
        if self.config.model.length_difference:
            following = (lengths.unsqueeze(1) - 1 - positions).clamp(min=0)  # (B, L)
        if guess is not None:
            guess = torch.nn.functional.pad(guess, (0, noised_tokens.shape[1] - guess.shape[1]), value=-1)
        if packing is None and self.training:
            packing = Packing(is_padding)
        states: Tensor = self.denoiser(
            noised_tokens,
            timestep,
            keys_values,
            attn_mask,
            following,
            packing,
            scale_shift,
            guess,
            is_read,
            asked,
        )
        return states

    def shifted(self, tokens: Tensor) -> Tensor:
        """Shift `tokens` (B, L) by one: a reader sees at each position the token before it, at first MASK."""
        return torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=self.mask_id)

    def read(
        self,
        tokens: Tensor,
        features: ImageFeatures,
        use_image: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D) of the own judge; `denoiser.logits` makes p(word | words before) of them.

        Args:
            tokens: (B, L) whole captions.
            features: of I images; the B captions are grouped by image.
            use_image: see `keys_values`.
            lengths: (B,) leaves out what lies behind the captions' ends.
        """
        assert self.judge is not None
        words = self.denoiser.token_embedding.weight
        hidden: Tensor = self.judge(tokens, words, *self.memory(features, use_image), lengths)
        return hidden

    @torch.no_grad()
    def caption_judge(self, features: ImageFeatures) -> TorchJudge | None:
        """A judge of captions of these images; None for a model without one."""
        return None if self.config.model.judge == "none" else TorchJudge(self, features)

    def extended(self, tokens: Tensor, lengths: Tensor, filler: int | Tensor) -> Tensor:
        """Tokens (B, L), where words attend to padding (B, max_length) with `filler` behind each caption."""
        if self.config.model.padding == "hidden":
            return tokens
        missing = self.config.model.max_length - tokens.shape[1]
        tokens = torch.nn.functional.pad(tokens, (0, missing))
        is_padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.unsqueeze(1)
        return torch.where(is_padding, filler, tokens)

    @torch.no_grad()  # not inference_mode: autocast would cast all weights anew at every step
    def denoising_steps(self, features: ImageFeatures, *, with_image_free: bool) -> DenoisingSteps:
        """The denoiser at work on captions of these images, see `model.protocol.DenoisingSteps`."""
        if self.static_decoder is not None:
            return self.static_decoder.steps(features, with_image_free=with_image_free)
        return TorchSteps(self, self.project_memory(features), with_image_free=with_image_free)

    def keys_values(
        self, features: ImageFeatures | None, use_image: Tensor | None = None
    ) -> MemoryKeysValues:
        """Project what the denoiser sees of I images; for captions without (None), the image-free memory.

        `use_image` (I,) False replaces an image's memory by the learned one (special design 4).
        """
        if features is None:
            return self.image_free_keys_values()
        return self.project_memory(features, use_image)

    def memory(
        self, features: ImageFeatures, use_image: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Build what captions of I images attend to: (I, P, D), and its mask (I, P); None: all of it."""
        if self.concept_embedding is not None:
            return memory_with_concepts(self, features, self.denoiser.token_embedding.weight, use_image)
        memory = self.memory_projection(features.memory)  # (I, P, D)
        if use_image is not None:
            memory = torch.where(use_image.view(-1, 1, 1), memory, self.image_free_memory.to(memory.dtype))
        return memory, None

    def project_memory(self, features: ImageFeatures, use_image: Tensor | None = None) -> MemoryKeysValues:
        """Cross-attention keys and values of I images; see `keys_values`."""
        return self.denoiser.project_memory(*self.memory(features, use_image))

    def image_free_keys_values(self) -> MemoryKeysValues:
        """Cross-attention keys and values of the learned image-free memory, as one image."""
        memory = self.image_free_memory.unsqueeze(0)
        mask = memory.new_ones(memory.shape[:2], dtype=torch.bool) if self.config.concepts else None
        return self.denoiser.project_memory(memory, mask)

    def length_logits(self, features: ImageFeatures) -> Tensor | None:
        """(I, max_length) length logits, or None without a length head.

        The summary is detached: the length loss would harm a trainable encoder (section 3.2).
        """
        if self.length_head is None or features.summary is None:
            return None
        logits: Tensor = self.length_head(features.summary.detach())
        return logits


class TorchJudge:
    """Reads finished captions of I images from left to right.

    Args:
        model: in evaluation mode, with a judge.
        features: of I images.
    """

    def __init__(self, model: DDCapModel, features: ImageFeatures) -> None:
        self.model, self.features = model, features

    @torch.no_grad()
    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """See `model.protocol.CaptionJudge`."""
        return read_left_to_right(self.model, tokens, self.features)


def read_left_to_right(model: DDCapModel, tokens: Tensor, features: ImageFeatures) -> Tensor:
    """(B, L) log p(token | tokens before it, image) by the model's judge.

    Args:
        model: with a judge.
        tokens: (B, L) captions grouped by image.
        features: of I images.
    """
    if model.judge is not None:
        hidden = model.read(tokens, features)
    else:
        zeros = torch.zeros_like(tokens[:, 0])
        is_read = torch.ones_like(zeros, dtype=torch.bool)
        keys_values = model.project_memory(features)
        hidden = model(model.shifted(tokens), zeros, zeros + tokens.shape[1], keys_values, is_read=is_read)
    log_probabilities = model.denoiser.logits(hidden).float().log_softmax(dim=2)
    return log_probabilities.gather(2, tokens.unsqueeze(2)).squeeze(2)


class TorchSteps:
    """A denoiser at work on captions of I images: what stays the same from step to step, computed once.

    That is the keys and values of the images, and what the layer norms take from every timestep. The
    image-free branch, where it is wanted, runs in one doubled batch.

    Args:
        model: in evaluation mode.
        keys_values: of I images.
        with_image_free: whether logits without the image are wanted too.
    """

    @torch.no_grad()
    def __init__(
        self, model: DDCapModel, keys_values: MemoryKeysValues, *, with_image_free: bool = False
    ) -> None:
        self.model, self.with_image_free = model, with_image_free
        self.vocabulary_size = model.config.vocabulary_size
        self.self_conditions = model.config.model.self_conditioning
        self.scale_shift = model.denoiser.adaln_scale_shift()
        if with_image_free:
            image_free = model.image_free_keys_values().expand(keys_values.layers[0][0].shape[0])
            keys_values = keys_values.followed_by(image_free)
        self.keys_values = keys_values

    @torch.no_grad()
    def logits(
        self,
        tokens: Tensor,
        timestep: Tensor,
        lengths: Tensor,
        positions: Tensor,
        guess: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `model.protocol.DenoisingSteps`."""
        if self.with_image_free:
            tokens, positions = tokens.repeat(2, 1), positions.repeat(2, 1)
            timestep, lengths = timestep.repeat(2), lengths.repeat(2)
            guess = None if guess is None else guess.repeat(2, 1)
        tokens = self.model.extended(tokens, lengths, self.model.mask_id)
        hidden = self._states(
            tokens, timestep, lengths, self.keys_values, self.scale_shift, guess, asked=positions
        )  # (B, n, D)
        logits = self._words(hidden).float()
        if not self.with_image_free:
            return logits, None
        with_image, without = logits.chunk(2)
        return with_image, without

    @torch.no_grad()
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
        logits, image_free = self.logits(tokens, timestep, lengths, positions, guess)
        if image_free is not None:
            logits = guide(logits, image_free, scale)
        if added is not None:
            logits += added.unsqueeze(1)
        highest, chosen = logits.max(dim=2)
        return chosen, highest - logits.logsumexp(dim=2)

    def _states(self, *arguments: Any, **keywords: Any) -> Tensor:
        """See `DDCapModel.forward`."""
        states: Tensor = self.model(*arguments, **keywords)
        return states

    def _words(self, states: Tensor) -> Tensor:
        """States (B, n, D) to logits (B, n, V)."""
        return self.model.denoiser.logits(states)
