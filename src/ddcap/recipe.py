"""A recipe: the settings of a model and of its training, as a YAML file with dotted overrides on top."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.errors import RecipeError
from ddcap.section import STRICT, Section
from ddcap.settings import (
    DecodingSettings,
    DiffusionSettings,
    EncoderSettings,
    ModelSettings,
    TokenizerSettings,
    parse_settings,
)

# The section `data`.


@dataclass(frozen=True, config=STRICT)
class ShardSource:
    """A folder of webdataset shards with their manifest.json."""

    path: str = Field(description="folder, or URL that fsspec opens")
    weight: float = Field(
        default=1, gt=0, description="how often an epoch uses its captions; 0.5: half of them, 2: twice"
    )


@dataclass(frozen=True, config=STRICT)
class TextSource(Section):
    """Captions without images, for training beside images."""

    path: str = Field(
        description=".json with one list of captions per image, or .txt with a caption per line; also .gz"
    )
    weight: int = Field(default=1, ge=1, description="how often an epoch uses each caption")


@dataclass(frozen=True, config=STRICT)
class DataSettings(Section):
    """The images and captions, and how they form batches."""

    json: str = Field(
        default="dataset.json",
        description="captions, relative to `root`: Karpathy JSON, CSV (image, caption), or a folder with a "
        ".txt beside each image",
    )
    root: str = Field(default=".", description="folder of the data set")
    images: str = Field(default=".", description="folder of the images, relative to `root`")
    text: str | None = Field(
        default=None, description="captions without images (.txt, .json, .gz), to learn from text alone"
    )
    beside: tuple[TextSource, ...] = Field(
        default=(),
        description="captions without images, learned beside the images from the concepts they name",
    )
    beside_captions: int = Field(
        default=0, ge=0, description="captions of `beside` per step, in addition to training.batch_size"
    )
    shards: tuple[ShardSource, ...] = Field(
        default=(),
        description="webdataset shards to train on; `json` then gives the validation images only",
    )
    shard_cache: str | None = Field(
        default=None,
        description="folder for temporary copies of remote shards: new, empty, or used for this before",
    )
    shards_mixed: int = Field(default=8, ge=1, description="shards whose images are shuffled together")
    val_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of the images to validate on, if the data gives no split"
    )
    captions_per_image: int = Field(
        default=1, ge=1, description="captions in a batch that share the memory of one image"
    )
    long_captions: Literal["drop", "truncate"] = Field(
        default="drop", description="in training, what to do with captions over model.max_length tokens"
    )
    learn_padding: bool = Field(
        default=False,
        description="pad captions with end tokens to model.max_length and learn these, so that the model "
        "itself ends a caption",
    )
    train_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the training images to use; a smaller share is part of every larger one",
    )
    folds: int = Field(
        default=1,
        ge=1,
        description="folds of the training images, by a digest of their names; see `held_out`",
    )
    held_out: int | None = Field(
        default=None,
        ge=0,
        description="fold, from 0, that is not trained on; `ddcap distill` lets the model caption it",
    )
    distilled: str | None = Field(
        default=None,
        description="captions that a teacher wrote (`ddcap distill`), relative to `root`; images of the "
        "training split that `json` lacks are trained on, too",
    )
    distilled_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the captions that are drawn from `distilled`"
    )
    views: int = Field(
        default=1,
        ge=1,
        description="views per training image: 1 plain, 2 adds its mirror, more add random crops",
    )
    cache: str | None = Field(
        default=None, description="folder for features of a frozen encoder; null computes them every time"
    )
    workers: int = Field(default=1, ge=0, description="processes that load data")


# The section `tagger`.


@dataclass(frozen=True, config=STRICT)
class TaggerSettings(Section):
    """Settings of `ddcap tagger`, which learns the concepts of images."""

    concepts: str | None = Field(
        default=None, description="JSON of the concepts: words, and the forms captions use"
    )
    class_words: str | None = Field(default=None, description="JSON of words for ImageNet's classes")
    labelled: str | None = Field(
        default=None,
        description="JSON of images with labels instead of captions, relative to data.root: {images: "
        "[{filepath, filename, set, labels}]}; one set labels the same things in all its images",
    )
    output: str = Field(default="runs/tagger", description="folder for weights, tags and typical errors")
    width: int = Field(default=256, ge=1, description="width of the hidden layer")
    epochs: int = Field(default=16, ge=1, description="passes over the images")
    batch_size: int = Field(default=256, ge=1, description="images per step")
    learning_rate: float = Field(default=1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(default=0.05, ge=0, description="weight decay of AdamW")
    dropout_in: float = Field(default=0.3, ge=0, lt=1, description="share of the inputs hidden in training")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="dropout of the hidden layer")
    folds: int = Field(
        default=4, ge=2, description="folds; each training image is tagged by a tagger that has not seen it"
    )
    fewest: int = Field(
        default=8, ge=1, description="images needed to learn a concept; rarer ones use class names alone"
    )
    seed: int = Field(default=0, description="seed of all random numbers")


# The section `training`.

_Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class TrainingSettings(Section):
    """Optimisation, regularisation, checkpoints and logs."""

    output: str = Field(default="runs/ddcap", description="folder for checkpoints, logs and the model")
    epochs: float = Field(default=30, gt=0, description="passes over the captions")
    warmup_epochs: float = Field(default=5, ge=0, description="epochs in which the learning rate rises")
    batch_size: int = Field(default=512, ge=1, description="captions per optimiser step, over all processes")
    gradient_accumulation: int = Field(default=1, ge=1, description="parts in which a batch is computed")
    learning_rate: float = Field(default=2e-4, gt=0, description="highest learning rate")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="learning rate after warm-up: cosine falls to 0; constant stays, so that the moving "
        "average can be judged at any epoch",
    )
    encoder_rate: float = Field(default=1.0, ge=0, description="factor on the learning rate of the encoder")
    weight_decay: float = Field(
        default=0.01, ge=0, description="weight decay of AdamW; biases, norms and other vectors have none"
    )
    betas: tuple[_Share, _Share] = Field(default=(0.9, 0.999), description="betas of AdamW")
    gradient_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 switches it off")
    image_free_probability: float = Field(
        default=0.2, ge=0, le=1, description="p of special design 4; 0: off"
    )
    judge_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="share of the captions that a shared judge (model.judge) reads instead of denoising them",
    )
    judge_only: bool = Field(
        default=False, description="train an own judge (model.judge) and leave all else as it is"
    )
    length_loss_weight: float = Field(
        default=1.0, ge=0, description="weight of the length head's loss; that of the words has 1"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="probability spread evenly over all words in the loss"
    )
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="decay of the moving average; 0: off")
    gradient_checkpointing: bool = Field(
        default=False, description="save memory: compute the blocks again for the gradient"
    )
    fsdp: bool = Field(
        default=False,
        description="split weights, gradients and optimizer over the processes (FSDP2), for large encoders",
    )
    compile: bool = Field(
        default=False, description="compile the blocks; takes a minute first, and on a CPU a C++ compiler"
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        default="no", description="bf16 computes in bfloat16 where that is safe"
    )
    seed: int = Field(default=0, description="seed of all random numbers")
    log_every: int = Field(default=20, ge=1, description="optimiser steps between log lines")
    wandb: str | None = Field(
        default=None, description="project at Weights & Biases that gets the figures of the log, too"
    )
    checkpoint_every: int = Field(default=500, ge=1, description="optimiser steps between checkpoints")
    keep_checkpoints: int = Field(
        default=2, ge=2, description="newest checkpoints to keep; if one is damaged, another is left"
    )
    validate_every: float = Field(default=1, gt=0, description="epochs between validations")
    validate_at: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="validate after these epochs and at the end, instead of validate_every"
    )
    validate_images: int = Field(default=500, ge=1, description="images per validation")
    sample_captions: int = Field(default=4, ge=0, description="validation captions written to the log")

    @property
    def bf16(self) -> bool:
        """True if forward passes run in mixed precision, including those that fill the feature cache."""
        return self.mixed_precision == "bf16"


# All sections together, and their constraints on each other.


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """All sections of a recipe, as in the YAML files under `recipes/`."""

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
                "data.cache: encoder.trainable=true changes the features, so they cannot be cached; set "
                "data.cache=null"
            )
        self._check_shards()
        if self.data.held_out is not None and self.data.held_out >= self.data.folds:
            raise ValueError(
                f"data.held_out={self.data.held_out}: data.folds={self.data.folds} has no such fold; they "
                "count from 0"
            )
        if not self.model.is_open:
            self.decoding.check_model(
                self.model,
                sees_concepts=self.encoder.concepts > 0,
                sees_persons=self.model.init
                is not None,  # it comes with the model to start from, or not at all
            )
        predicts_length = self.model.length_prediction and not self.model.is_open
        if self.data.learn_padding and predicts_length:
            raise ValueError(
                "data.learn_padding=true: every caption has max_length tokens, so there is no length to "
                "predict; set model.length_prediction=false"
            )
        if self.training.judge_only and not self.model.is_open and self.model.judge != "own":
            raise ValueError(f"training.judge_only=true: model.judge={self.model.judge}; set model.judge=own")
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
            "data.train_share": self.data.train_share < 1,
            "data.held_out": self.data.held_out is not None,
            "data.distilled": self.data.distilled is not None,
            "data.long_captions=drop": self.data.long_captions == "drop",
        }
        for setting, is_set in needs_records.items():
            if is_set:
                raise ValueError(
                    f"{setting}: needs all captions or images before the first step, and data.shards reads "
                    "them during training; change one of them"
                )
        if self.tokenizer.kind == "compact" and self.model.init is None:
            raise ValueError(
                "data.shards: a compact tokenizer is trained on all captions; set tokenizer.kind=gpt2, or "
                "model.init to a model with a tokenizer"
            )


# Recipes as YAML files, and the dotted overrides on top.

logger = logging.getLogger("ddcap")
_RENAMED = {"twin.yaml": "autoregressive.yaml"}


def load_recipe(
    path: str | Path, overrides: list[str] | None = None, *, base: str | Path | None = None
) -> Recipe:
    """Read a YAML recipe and apply dotted overrides.

    A recipe with `extends: other.yaml` (relative to itself) changes single settings of that one.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings; values are read as YAML.
        base: the recipe that it extends, in place of the one it names.

    Raises:
        RecipeError: if the file is missing or not YAML, or a setting is unknown or wrong.
    """
    values = _read_sections(Path(path), above=(), base=None if base is None else Path(base))
    for override in overrides or []:
        _apply_override(values, override)
    recipe: Recipe = parse_settings(Recipe, values, str(path))
    return recipe


def _read_sections(path: Path, above: tuple[Path, ...], base: Path | None = None) -> dict[str, Any]:
    """The sections of a recipe on top of those it extends; `above` are the recipes that extend this one."""
    path = _present_name(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _TextLoader) or {}
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; see the folder recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give a YAML file") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{path}: not valid YAML ({detail}); correct the file") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: contains no sections; compare it with a file in recipes/")
    values = {section: {} if keys is None else keys for section, keys in values.items()}
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if not isinstance(extended, str):
        raise RecipeError(f"{path}: 'extends' is not the name of one recipe file")
    base = base or path.parent / extended
    if base.resolve() in {one.resolve() for one in (*above, path)}:
        raise RecipeError(f"{path}: extends {extended}, which extends it in turn; remove one of the two")
    merged = _read_sections(base, (*above, path))
    for section, keys in values.items():
        both = isinstance(keys, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **keys} if both else keys
    return merged


def _present_name(path: Path) -> Path:
    """Return the path of a recipe, or that of its new name if only this one is there."""
    renamed = path.with_name(_RENAMED.get(path.name, path.name))
    if path.exists() or not renamed.exists():
        return path
    logger.warning("%s: deprecated name; use %s", path, renamed)
    return renamed


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"override {override!r} is not a setting; write section.key=value")
    *sections, key = dotted.split(".")
    try:
        value = yaml.load(text, _TextLoader)
    except yaml.YAMLError:
        raise RecipeError(f"override {override!r}: the value is not valid YAML; quote it") from None
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"override {override!r}: {section!r} is a single value, not a section")
    values[key] = value


class _TextLoader(yaml.SafeLoader):
    """Every scalar but null stays text for the settings to read by type: `no` is a word, `2e-4` a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
