"""All sections together, and what they demand of each other."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.data import DataSettings
from ddcap.recipe.decoding import DecodingSettings
from ddcap.recipe.diffusion import DiffusionSettings
from ddcap.recipe.encoder import EncoderSettings
from ddcap.recipe.model import ModelSettings
from ddcap.recipe.strictness import STRICT
from ddcap.recipe.tagger import TaggerSettings
from ddcap.recipe.tokenizer import TokenizerSettings
from ddcap.recipe.training import TrainingSettings


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """All sections; what a YAML file under `recipes/` holds."""

    data: DataSettings = Field(default_factory=DataSettings)
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings)
    tagger: TaggerSettings = Field(default_factory=TaggerSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)

    def __post_init__(self) -> None:
        """Check settings that constrain each other across sections."""
        if self.data.cache is not None and self.encoder.trainable:
            raise ValueError(
                "data.cache is set although encoder.trainable=true changes the features; set data.cache=null"
            )
        self._check_shards()
        if not self.model.is_open:
            self.decoding.check_model(self.model, sees_concepts=self.encoder.concepts > 0)
        predicts_length = self.model.length_prediction and not self.model.is_open
        if self.data.learn_padding and predicts_length:
            raise ValueError(
                "data.learn_padding=true makes every caption max_length tokens long: there is no length to "
                "predict; set model.length_prediction=false"
            )
        drops = self.training.image_free_probability
        if self.model.kind == "autoregressive" and drops and not self.encoder.concepts:
            raise ValueError(
                f"training.image_free_probability={self.training.image_free_probability}: an autoregressive "
                "model has no image-free memory; set it to 0"
            )
        if self.training.batch_size % self.data.captions_per_image:
            raise ValueError(
                f"training.batch_size={self.training.batch_size} is not a multiple of "
                f"data.captions_per_image={self.data.captions_per_image}; change one"
            )

    def _check_shards(self) -> None:
        if not self.data.shards:
            return
        needs_records = {
            "data.text": self.data.text is not None,
            "data.cache": self.data.cache is not None,
            "data.long_captions=drop": self.data.long_captions == "drop",
        }
        for setting, is_set in needs_records.items():
            if is_set:
                raise ValueError(
                    f"{setting} needs all captions or pictures before the first step, which data.shards does "
                    "not give; change one of them"
                )
        if self.tokenizer.kind == "compact" and self.model.init is None:
            raise ValueError(
                "data.shards: a compact tokenizer is trained on all captions; set tokenizer.kind=gpt2, or "
                "model.init to a model with a tokenizer"
            )
