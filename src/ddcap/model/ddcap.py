"""The whole model: image encoder, memory projection, length head, denoiser; and how it is stored.

Shapes: B captions, I images (B a multiple of I), L caption positions, P image positions, C encoder width, D
width, S summary width, V words.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddcap.diffusion.schedule import Schedule, linear_schedule
from ddcap.errors import CheckpointError, RecipeError
from ddcap.model.attention_mask import may_attend
from ddcap.model.denoiser import Denoiser, MemoryKeysValues
from ddcap.model.image_encoder import ImageEncoder, ImageFeatures, build_image_encoder
from ddcap.model.length_head import LengthHead, TanhMLP
from ddcap.recipe import (
    DecodingSettings,
    DiffusionSettings,
    EncoderSettings,
    ModelSettings,
    dump_settings,
    parse_settings,
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_ENCODER_PREFIX = "encoder."


@dataclass(frozen=True)
class ModelConfig:
    """Everything a stored model must know about itself; `decoding` are its default decoding settings."""

    vocabulary_size: int
    encoder: EncoderSettings
    model: ModelSettings
    diffusion: DiffusionSettings
    decoding: DecodingSettings

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`."""
        sections = {name: dump_settings(getattr(self, name)) for name in _SECTIONS}
        return {"format": "ddcap-1", "vocabulary_size": self.vocabulary_size, **sections}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> ModelConfig:
        """Inverse of `to_dict`.

        Raises:
            CheckpointError: if `values` are of another format, or a setting is missing, unknown or wrong.
        """
        if not isinstance(values, dict) or values.get("format") != "ddcap-1":
            raise CheckpointError(f"{source}: not a ddcap model's config (its 'format' is not 'ddcap-1')")
        size = values.get("vocabulary_size")
        if not isinstance(size, int) or size < 1:
            raise CheckpointError(
                f"{source}: vocabulary_size={size!r} is not a number of words; copy the model again"
            )
        missing = _SECTIONS.keys() - values.keys()
        if missing:
            raise CheckpointError(f"{source}: has no section {min(missing)!r}; copy the model again")
        try:
            sections = {
                name: parse_settings(kind, values[name], f"{source}, {name}")
                for name, kind in _SECTIONS.items()
            }
        except RecipeError as error:
            raise CheckpointError(str(error)) from None
        return cls(vocabulary_size=size, **sections)


_SECTIONS: dict[str, type] = {
    "encoder": EncoderSettings,
    "model": ModelSettings,
    "diffusion": DiffusionSettings,
    "decoding": DecodingSettings,
}


@dataclass(frozen=True)
class DDCapOutput:
    """What one forward pass predicts.

    Attributes:
        logits: (N, V) at the caption positions asked for, or (B, L, V) at all.
        length_logits: (I, max_length), None without length prediction.
    """

    logits: Tensor
    length_logits: Tensor | None


class DDCapModel(nn.Module):
    """Image and noised caption to a prediction of the clean caption (section 3 of the paper).

    Args:
        config: the model's settings.
        encoder: an image encoder; None builds the one `config` names, with its published weights.
    """

    def __init__(self, config: ModelConfig, encoder: ImageEncoder | None = None) -> None:
        super().__init__()
        settings = config.model
        self.config = config
        self.encoder = encoder or build_image_encoder(config.encoder)
        self.memory_projection = TanhMLP(
            self.encoder.memory_width, settings.projection_hidden, settings.width
        )
        self.image_free_memory = nn.Parameter(
            torch.randn(self.encoder.memory_positions, settings.width) * 0.02
        )
        self.denoiser = Denoiser(settings, config.vocabulary_size, config.diffusion.steps)
        self.length_head = (
            LengthHead(self.encoder.summary_width, settings.length_hidden, settings.max_length)
            if settings.length_prediction
            else None
        )

    @property
    def schedule(self) -> Schedule:
        """The forward process the model was made for."""
        return linear_schedule(self.config.diffusion, self.config.vocabulary_size)

    @property
    def mask_id(self) -> int:
        """V, the id of the MASK state."""
        return self.config.vocabulary_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.image_free_memory.device

    def forward(
        self,
        noised_tokens: Tensor,
        timestep: Tensor,
        lengths: Tensor,
        features: ImageFeatures,
        *,
        use_image: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> DDCapOutput:
        """Predict x_0 and the length.

        Args:
            noised_tokens: (B, L) x_t.
            timestep: (B,) t.
            lengths: (B,) tokens of each caption, end token included.
            features: of I images; the B captions are grouped by image.
            use_image: (I,) False replaces an image's memory by the learned image-free one (special design 4).
            positions: (N,) flat indices into B x L where logits are wanted; None for all.
        """
        keys_values = self.project_memory(features, use_image)
        hidden = self.hidden(noised_tokens, timestep, lengths, keys_values)  # (B, L, D)
        if positions is not None:
            hidden = hidden.flatten(0, 1)[
                positions
            ]  # (N, D): the head is the widest layer, spare it the padding
        return DDCapOutput(self.denoiser.logits(hidden), self.length_logits(features))

    def project_memory(self, features: ImageFeatures, use_image: Tensor | None = None) -> MemoryKeysValues:
        """Cross-attention keys and values of I images; see `forward`."""
        memory = self.memory_projection(features.memory)  # (I, P, D)
        if use_image is not None:
            memory = torch.where(use_image.view(-1, 1, 1), memory, self.image_free_memory.to(memory.dtype))
        return self.denoiser.project_memory(memory)

    def image_free_keys_values(self) -> MemoryKeysValues:
        """Cross-attention keys and values of the learned image-free memory, as one image."""
        return self.denoiser.project_memory(self.image_free_memory.unsqueeze(0))

    def hidden(
        self, noised_tokens: Tensor, timestep: Tensor, lengths: Tensor, keys_values: MemoryKeysValues
    ) -> Tensor:
        """Hidden states (B, L, D) of noised captions, with padding and concentrated attention applied."""
        positions = torch.arange(noised_tokens.shape[1], device=noised_tokens.device)
        allowed = may_attend(
            is_mask=noised_tokens == self.mask_id,
            is_padding=positions >= lengths.unsqueeze(1),
            concentrated=self.config.model.concentrated_attention,
        )
        states: Tensor = self.denoiser(noised_tokens, timestep, keys_values, allowed)
        return states

    def length_logits(self, features: ImageFeatures) -> Tensor | None:
        """(I, max_length) length logits, or None without a length head.

        The summary is detached: the length loss would harm a trainable encoder (section 3.2).
        """
        if self.length_head is None:
            return None
        logits: Tensor = self.length_head(features.summary.detach())
        return logits

    def stored_state(self) -> dict[str, Tensor]:
        """The weights that travel with the model: all, less those of a frozen encoder."""
        trained = self.config.encoder.trainable
        return {
            name: value
            for name, value in self.state_dict().items()
            if trained or not name.startswith(_ENCODER_PREFIX)
        }

    def load_stored_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `stored_state`.

        Raises:
            RuntimeError: if names or shapes do not fit.
        """
        expected = self.stored_state()
        missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
        misshapen = [
            f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ]
        if missing or unexpected or misshapen:
            raise RuntimeError(
                f"missing {missing[:3]}, unexpected {unexpected[:3]}, misshapen {misshapen[:3]}"
            )
        self.load_state_dict(state, strict=False)  # not strict: a frozen encoder has its weights already

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, config: ModelConfig | None = None
    ) -> None:
        """Write `config.json` (the model's own, or `config`) and `model.safetensors` into `folder`.

        Save the tokenizer beside them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
            for name, value in self.stored_state().items()
        }
        temporary = folder / f".writing_{WEIGHTS_NAME}"
        save_file(state, temporary)
        temporary.chmod(0o644)  # safetensors writes for the owner only, and packages are read by all
        os.replace(temporary, folder / WEIGHTS_NAME)  # a model that was here before stays whole until then
        (folder / CONFIG_NAME).write_text(
            json.dumps((config or self.config).to_dict(), indent=2) + "\n", encoding="utf-8"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DDCapModel:
        """Read what `save_pretrained` wrote; evaluation mode, float32.

        Raises:
            CheckpointError: if a file is missing, damaged or does not fit.
        """
        folder = Path(folder)
        config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
        for path in (config_path, weights_path):
            if not path.is_file():
                raise CheckpointError(f"{path}: no such file; give a folder that ddcap saved a model in")
        try:
            values = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError:
            raise CheckpointError(f"{config_path}: not valid JSON; copy the model again") from None
        config = ModelConfig.from_dict(values, str(config_path))
        try:
            state = load_file(weights_path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{weights_path}: damaged or cut short ({error}); copy the model again"
            ) from None
        model = cls(config, build_image_encoder(config.encoder, pretrained=not config.encoder.trainable))
        try:
            model.load_stored_state({name: value.float() for name, value in state.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{weights_path}: does not fit {config_path} ({error})") from None
        return model.eval()
