"""The section `data`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT


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
    views: int = Field(
        default=1, ge=1, description="per training picture: 1 plain, 2 adds its mirror, more add random crops"
    )
    cache: str | None = Field(
        default=None, description="folder for a frozen encoder's features; without it they are computed live"
    )
    workers: int = Field(default=1, ge=0, description="data loading processes")
