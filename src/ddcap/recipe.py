"""A recipe: the settings of a model and of its training, as a YAML file with dotted overrides on top."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.errors import RecipeError
from ddcap.settings import (
    STRICT,
    DecodingSettings,
    DiffusionSettings,
    EncoderSettings,
    ModelSettings,
    Section,
    TokenizerSettings,
    parse_settings,
)

# The section `data`.


@dataclass(frozen=True, config=STRICT)
class ShardSource:
    """A folder of webdataset shards with their manifest.json."""

    path: str = Field(description="folder or URL; what fsspec opens")
    weight: float = Field(
        default=1, gt=0, description="how often an epoch draws its captions; 0.5: half of them, 2: twice"
    )


@dataclass(frozen=True, config=STRICT)
class TextSource(Section):
    """Captions without pictures, for training beside pictures."""

    path: str = Field(
        description="JSON in which a picture's captions stand in one list, or .txt with a caption a line; .gz"
    )
    weight: int = Field(default=1, ge=1, description="how often an epoch over the text has each caption")


@dataclass(frozen=True, config=STRICT)
class DataSettings(Section):
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
    beside: tuple[TextSource, ...] = Field(
        default=(),
        description="captions without pictures, learned beside the pictures from the concepts that they name",
    )
    beside_captions: int = Field(
        default=0, ge=0, description="so many of them in every step, beside training.batch_size"
    )
    shards: tuple[ShardSource, ...] = Field(
        default=(),
        description="train on the pictures of these; `json` then gives the validation pictures only",
    )
    shard_cache: str | None = Field(
        default=None,
        description="folder for copies of shards that are not on this disk, while in use: new, empty, or one "
        "that was used for this before",
    )
    shards_mixed: int = Field(default=8, ge=1, description="shards whose pictures are shuffled together")
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
    train_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the training pictures to learn from, chosen by their names, so that a smaller "
        "share is part of a larger one: what less data would give",
    )
    views: int = Field(
        default=1, ge=1, description="per training picture: 1 plain, 2 adds its mirror, more add random crops"
    )
    cache: str | None = Field(
        default=None, description="folder for a frozen encoder's features; without it they are computed live"
    )
    workers: int = Field(default=1, ge=0, description="data loading processes")


# The section `tagger`.


@dataclass(frozen=True, config=STRICT)
class TaggerSettings(Section):
    """How the concepts of a picture are learned, see `ddcap tagger`."""

    concepts: str | None = Field(
        default=None, description="concepts.json: the words, and the forms in which captions use them"
    )
    class_words: str | None = Field(default=None, description="JSON: what ImageNet's classes are called")
    labelled: str | None = Field(
        default=None,
        description="JSON of pictures with labels in place of captions, relative to data.root: {images: "
        "[{filepath, filename, set, labels}]}; sets label the same things",
    )
    output: str = Field(default="runs/tagger", description="folder for weights, tags and what they are like")
    width: int = Field(default=256, ge=1, description="of the hidden layer")
    epochs: int = Field(default=16, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    dropout_in: float = Field(default=0.3, ge=0, lt=1, description="share of the evidence hidden in training")
    dropout: float = Field(default=0.3, ge=0, lt=1)
    folds: int = Field(
        default=4, ge=2, description="training pictures are tagged by taggers that have not seen them"
    )
    fewest: int = Field(
        default=8, ge=1, description="pictures that a concept is learned from; rarer ones go by class names"
    )
    seed: int = 0


# The section `training`.

_Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class TrainingSettings(Section):
    """Optimisation, regularisation, checkpoints and logs."""

    output: str = Field(default="runs/ddcap", description="folder for checkpoints, logs and the model")
    epochs: float = Field(default=30, gt=0)
    warmup_epochs: float = Field(default=5, ge=0)
    batch_size: int = Field(default=512, ge=1, description="captions per optimiser step, over all processes")
    gradient_accumulation: int = Field(default=1, ge=1, description="parts a batch is computed in")
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="of the learning rate after its warm-up: cosine falls to 0, constant stays, so that a "
        "training can be judged at any epoch by its moving average",
    )
    encoder_rate: float = Field(default=1.0, ge=0, description="factor on the rate of a trainable encoder")
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    gradient_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 switches it off")
    image_free_probability: float = Field(default=0.2, ge=0, le=1, description="p; 0: no special design 4")
    length_loss_weight: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="0 switches the moving average off")
    gradient_checkpointing: bool = Field(
        default=False, description="spare memory: blocks are computed again for their gradient"
    )
    fsdp: bool = Field(
        default=False,
        description="spread weights, gradients and optimizer over the processes (FSDP2), for large encoders",
    )
    compile: bool = Field(
        default=False, description="compile the blocks; takes a minute first, and a C++ compiler on a CPU"
    )
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    log_every: int = Field(default=20, ge=1, description="optimiser steps between two log lines")
    checkpoint_every: int = Field(default=500, ge=1, description="optimiser steps between two checkpoints")
    keep_checkpoints: int = Field(
        default=2, ge=2, description="newest ones; two, so that one stays if the other is damaged"
    )
    validate_every: float = Field(default=1, gt=0, description="epochs between two validations")
    validate_at: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="validate after these epochs and in the end, in place of validate_every"
    )
    validate_images: int = Field(default=500, ge=1, description="validation pictures per validation")
    sample_captions: int = Field(default=4, ge=0, description="validation captions written to the log")

    @property
    def bf16(self) -> bool:
        """Whether forward passes run in mixed precision, those that fill the feature cache included."""
        return self.mixed_precision == "bf16"


# All sections together, and what they demand of each other.


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
            "data.train_share": self.data.train_share < 1,
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


# Recipes as YAML files, and the dotted overrides on top.


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
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _TextLoader) or {}
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; the shipped ones are in the folder recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give a YAML file") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{path}: not valid YAML ({detail}); mend the file") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: holds no sections; compare it with a file in recipes/")
    values = {section: {} if keys is None else keys for section, keys in values.items()}
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if not isinstance(extended, str):
        raise RecipeError(f"{path}: 'extends' is not the name of one recipe file")
    base = base or path.parent / extended
    if base.resolve() in {one.resolve() for one in (*above, path)}:
        raise RecipeError(f"{path}: extends {extended}, which extends it in turn; take one of them out")
    merged = _read_sections(base, (*above, path))
    for section, keys in values.items():
        both = isinstance(keys, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **keys} if both else keys
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
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
