"""Every setting of the project: typed, frozen, validated before anything is computed.

A recipe has a section per file here; `file.py` reads one from YAML. Each module of the package receives its
own section, never the whole recipe. An unknown key fails.
"""

from __future__ import annotations

from ddcap.recipe.data import DataSettings, ShardSource, TextSource
from ddcap.recipe.decoding import DecodingSettings
from ddcap.recipe.diffusion import DiffusionSettings
from ddcap.recipe.encoder import EncoderSettings
from ddcap.recipe.model import ModelSettings
from ddcap.recipe.recipe import Recipe
from ddcap.recipe.tagger import TaggerSettings
from ddcap.recipe.tokenizer import TokenizerSettings
from ddcap.recipe.training import TrainingSettings

__all__ = [
    "DataSettings",
    "DecodingSettings",
    "DiffusionSettings",
    "EncoderSettings",
    "ModelSettings",
    "Recipe",
    "ShardSource",
    "TaggerSettings",
    "TextSource",
    "TokenizerSettings",
    "TrainingSettings",
]
