"""Training that starts from a trained model (`model.init`).

The architecture is taken over, and the tokenizer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import RecipeError
from ddcap.model.image_encoder import ImageEncoder
from ddcap.model.kinds import CaptioningModel, load_model
from ddcap.model_folder import find_model
from ddcap.recipe import EncoderSettings, Recipe, TokenizerSettings
from ddcap.recipe.section import Section

_TRAINING_OF_ENCODER = ("trainable", "tagger")


@dataclass(frozen=True)
class Initial:
    """Where a training starts.

    Attributes:
        recipe: with the architecture of the model to start from filled in.
        model: the model of `model.init`, if there is one.
        tokenizer: its tokenizer.
        encoder: its encoder.
    """

    recipe: Recipe
    model: CaptioningModel | None = None
    tokenizer: CaptionTokenizer | None = None
    encoder: ImageEncoder | None = None


def load_initial(recipe: Recipe) -> Initial:
    """Read the model that `model.init` names, and fit the recipe to it.

    What a recipe leaves open is that model's. It may choose `model.dropout`, `decoding` and what of the
    encoder trains; whatever else it gives has to be the same, also where it gives a default. The weights of
    an encoder that was trained before travel with the new model, too, whether it trains any further or not.

    Raises:
        CheckpointError: if there is no such model.
        RecipeError: if the recipe asks for another architecture.
    """
    init = recipe.model.init
    if init is None:
        return Initial(recipe)
    source, folder = f"model.init={init}", find_model(init)
    model, tokenizer = load_model(folder), CaptionTokenizer.load(folder)
    theirs = model.config
    _check_same("model", recipe.model, theirs.model, source, free=("init", "dropout"))
    _check_same("diffusion", recipe.diffusion, theirs.diffusion, source)
    _check_tokenizer(recipe.tokenizer, tokenizer, source)
    encoder = _fit_encoder(recipe.encoder, model, source)
    fitted: Recipe = _changed(
        recipe,
        source,
        model=dataclasses.replace(theirs.model, init=init, **_given(recipe.model, "dropout")),
        encoder=encoder,
        diffusion=theirs.diffusion,
        decoding=_changed(theirs.decoding, source, **_given(recipe.decoding, *recipe.decoding.given)),
    )
    return Initial(fitted, model, tokenizer, model.encoder)


def _fit_encoder(ours: EncoderSettings, model: CaptioningModel, source: str) -> EncoderSettings:
    """The settings of the model's encoder, which trains from now on as ours say."""
    theirs = dataclasses.replace(model.config.encoder, stored=model.config.encoder.travels)
    _check_same("encoder", ours, theirs, source, free=_TRAINING_OF_ENCODER)
    fitted = dataclasses.replace(theirs, **{name: getattr(ours, name) for name in _TRAINING_OF_ENCODER})
    model.encoder.set_trainable(fitted)
    return fitted


def _changed(settings: Any, source: str, **changes: Any) -> Any:
    try:
        return dataclasses.replace(settings, **changes)
    except ValueError as error:
        raise RecipeError(f"{source}: {_first_reason(error)}") from None


def _given(section: Section, *names: str) -> dict[str, Any]:
    """Those of the named settings that the recipe gives."""
    return {name: getattr(section, name) for name in names if name in section.given}


def _check_same(name: str, ours: Section, theirs: Section, source: str, free: tuple[str, ...] = ()) -> None:
    for setting in sorted(ours.given.difference(free)):
        wanted, has = getattr(ours, setting), getattr(theirs, setting)
        if wanted != has:
            raise RecipeError(
                f"{name}.{setting}={wanted}: the model of {source} has {has}; leave the setting out"
            )


def _check_tokenizer(asked: TokenizerSettings, theirs: CaptionTokenizer, source: str) -> None:
    """Of the same kind, if compact of at most so many entries."""
    wrong_kind = "kind" in asked.given and asked.kind != theirs.kind
    too_large = "vocabulary_size" in asked.given and theirs.vocabulary_size > asked.vocabulary_size
    if wrong_kind or (too_large and theirs.kind == "compact"):
        raise RecipeError(f"{source} brings its tokenizer; leave out the tokenizer section")


def _first_reason(error: ValueError) -> str:
    """The message of a settings check, without what pydantic writes around it."""
    problems = getattr(error, "errors", None)
    return problems()[0]["msg"].removeprefix("Value error, ") if problems else str(error)
