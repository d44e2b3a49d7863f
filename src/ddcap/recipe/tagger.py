"""The section `tagger`."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT


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
