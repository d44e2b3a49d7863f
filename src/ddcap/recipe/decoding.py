"""The section `decoding`, which also belongs to every trained model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.model import ModelSettings
from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT


@dataclass(frozen=True, config=STRICT)
class DecodingSettings(Section):
    """How a caption is made from a trained model."""

    method: Literal["best_first", "ancestral", "left_to_right"] = Field(
        default="best_first", description="special design 3; left_to_right is the autoregressive twin's"
    )
    steps: int | None = Field(default=None, ge=1, description="denoising steps; else one token per step")
    schedule: Literal["per_caption", "released"] = Field(
        default="per_caption", description="released: steps follow the longest caption of the batch"
    )
    guidance: float = Field(default=1.17, ge=0, description="s of equation 8; 1 switches it off")
    length: int | str = Field(
        default="predicted",
        union_mode="left_to_right",
        description="tokens of every caption, or 'predicted' from the picture",
    )
    exact_length: bool = Field(
        default=False,
        description="a caption has exactly `length` tokens: the end token comes last and nowhere else; "
        "otherwise it may end early, or not at all. Who asks a captioner for a length gets it exactly",
    )
    length_rule: Literal["argmax", "expected"] = Field(
        default="argmax", description="predicted length: the likeliest class, or the rounded mean"
    )
    candidates: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="captions decoded for each picture, of which the likeliest is kept: of its likeliest "
        "lengths, or of those around a fixed one",
    )
    length_penalty: float = Field(
        default=1.0,
        ge=0,
        description="of candidates or beams, the likeliest is the one of the highest log-probability / "
        "tokens ** length_penalty; a higher penalty prefers longer captions",
    )
    concept_bonus: float = Field(
        default=0.0,
        ge=0,
        description="is added to the log-probability of words for concepts that the picture shows, times "
        "their confidence, until the caption names them; needs a model that sees concepts",
    )
    repeat_penalty: float = Field(
        default=0.0,
        ge=0,
        description="is taken from the log-probability of words for concepts that the caption names already",
    )
    concept_weight: float = Field(
        default=0.0,
        ge=0,
        description="of candidates or beams, each confidence of a concept that a caption names counts this "
        "much in its favour",
    )
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token, 1 samples")
    beams: int = Field(
        default=1, ge=1, le=1000, description="left_to_right: captions followed at once; 1 is greedy"
    )

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.length != "predicted" and (isinstance(self.length, str) or self.length < 1):
            raise ValueError(f"length={self.length!r}: give a number of tokens from 1, or 'predicted'")
        if self.exact_length and self.candidates > 1:
            raise ValueError(
                f"exact_length=true with candidates={self.candidates}: candidates differ in their lengths; "
                "take one of them out"
            )
        if self.exact_length and self.length == "predicted":
            raise ValueError("exact_length=true: give the length, a number of tokens")
        if self.exact_length and self.length == 1:
            raise ValueError("length=1: the end token counts, so that no word is left; give at least 2")
        if self.beams > 1 and (self.method != "left_to_right" or self.temperature):
            raise ValueError(
                f"beams={self.beams} needs method=left_to_right and temperature=0; change them, or beams=1"
            )

    @property
    def uses_concepts(self) -> bool:
        """Whether concepts have a say in which words are chosen."""
        return bool(self.concept_bonus or self.repeat_penalty)

    def check_model(self, model: ModelSettings, *, sees_concepts: bool) -> None:
        """Raise ValueError if a model of these settings, with concepts or without, cannot decode so."""
        for name in ("concept_bonus", "repeat_penalty", "concept_weight"):
            if getattr(self, name) and not sees_concepts:
                raise ValueError(
                    f"{name}={getattr(self, name)}: this model sees no concepts; leave it at 0, or train "
                    "one with a tagger (docs/concepts.md)"
                )
        if isinstance(self.length, int) and self.length > model.max_length:
            raise ValueError(
                f"length={self.length} is over this model's longest caption, "
                f"model.max_length={model.max_length} tokens; lower it"
            )
        is_twin = model.kind == "autoregressive"
        has_one_length = self.length == "predicted" and not model.length_prediction
        if self.candidates > 1 and has_one_length and not is_twin and not self.temperature:
            raise ValueError(
                f"candidates={self.candidates}: a model that predicts no length would decode the same "
                "caption each time; give a length, or a temperature"
            )
        if is_twin != (self.method == "left_to_right"):
            own = "left_to_right" if is_twin else "best_first or ancestral"
            raise ValueError(f"method={self.method}: a model of kind {model.kind} decodes by {own}; say so")
        if is_twin:
            plain = DecodingSettings(method="left_to_right", guidance=1.0)
            if self.length != "predicted" and not self.exact_length and self.candidates == 1:
                raise ValueError(
                    f"length={self.length}: an autoregressive model ends its captions by itself, unless you "
                    "also say exact_length=true"
                )
            for name in ("guidance", "steps", "schedule", "length_rule", "candidates"):
                if getattr(self, name) != getattr(plain, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)}: means nothing to an autoregressive model; "
                        f"leave it at {getattr(plain, name)}"
                    )
