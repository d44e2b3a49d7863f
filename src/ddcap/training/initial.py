"""Training that starts from a trained model (`model.init`): its architecture and tokenizer are taken over."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import RecipeError
from ddcap.model.image_encoder import ImageEncoder, build_image_encoder
from ddcap.model.kinds import CaptioningModel, load_model
from ddcap.model_folder import find_model
from ddcap.recipe import EncoderSettings, ModelSettings, Recipe, TokenizerSettings
from ddcap.training.tags import Tagging

_TRAINING_OF_ENCODER = ("trainable", "trainable_from", "init", "stored", "tagger")


@dataclass(frozen=True)
class Initial:
    """Where a training starts.

    Attributes:
        recipe: with the architecture of the model to start from filled in.
        model: the trained model.
        tokenizer: its tokenizer.
    """

    recipe: Recipe
    model: CaptioningModel
    tokenizer: CaptionTokenizer


def load_initial(recipe: Recipe) -> Initial:
    """Read the model that `recipe.model.init` names and fit the recipe to it.

    A recipe may choose `model.dropout` and what of the encoder trains anew, and `decoding`; what else it says
    of the architecture has to be left out or be the same. The weights of an encoder that was trained before
    travel with the new model, too, whether it trains any further or not.

    Raises:
        CheckpointError: if there is no such model.
        RecipeError: if the recipe asks for another architecture.
    """
    assert recipe.model.init is not None
    folder = find_model(recipe.model.init)
    model, tokenizer = load_model(folder), CaptionTokenizer.load(folder)
    theirs = model.config
    _check_same("model", recipe.model, ModelSettings(), theirs.model, free=("init", "dropout"))
    _check_same("encoder", recipe.encoder, EncoderSettings(), theirs.encoder, free=_TRAINING_OF_ENCODER)
    _check_same("diffusion", recipe.diffusion, type(recipe.diffusion)(), theirs.diffusion)
    asked = recipe.tokenizer  # one of the same kind, if compact of at most so many entries, may be theirs
    fits = asked.kind == tokenizer.kind
    fits = fits and (asked.kind == "gpt2" or tokenizer.vocabulary_size <= asked.vocabulary_size)
    if asked != TokenizerSettings() and not fits:
        raise RecipeError(
            f"model.init={recipe.model.init} brings its tokenizer; leave out the tokenizer section"
        )
    dropout = (
        recipe.model.dropout if recipe.model.dropout != ModelSettings().dropout else theirs.model.dropout
    )
    try:
        fitted = dataclasses.replace(
            recipe,
            model=dataclasses.replace(theirs.model, dropout=dropout, init=recipe.model.init),
            encoder=dataclasses.replace(
                theirs.encoder,
                trainable=recipe.encoder.trainable,
                trainable_from=recipe.encoder.trainable_from,
                stored=theirs.encoder.travels,
            ),
            diffusion=theirs.diffusion,
            decoding=recipe.decoding if recipe.decoding != type(recipe.decoding)() else theirs.decoding,
        )
    except ValueError as error:
        raise RecipeError(f"model.init={recipe.model.init}: {_first_reason(error)}") from None
    return Initial(fitted, model, tokenizer)


def initial_encoder(
    settings: EncoderSettings, model: CaptioningModel | None, tagging: Tagging | None = None
) -> ImageEncoder:
    """The encoder to start from: that of `model`, that of `encoder.init`, or the published one.

    Raises:
        CheckpointError: if there is no such model.
        RecipeError: if its encoder is of another architecture.
    """
    if model is None and settings.init is not None:
        model = load_model(find_model(settings.init))
        _check_same("encoder", settings, EncoderSettings(), model.config.encoder, free=_TRAINING_OF_ENCODER)
    if model is None and tagging is not None:
        encoder = build_image_encoder(settings, concepts=len(tagging.vocabulary))
        encoder.load_state_dict(tagging.weights, strict=False)
        return encoder
    if model is None:
        return build_image_encoder(settings)
    model.encoder.set_trainable(settings)
    return model.encoder


def _check_same(section: str, ours: Any, default: Any, theirs: Any, free: tuple[str, ...] = ()) -> None:
    for field in dataclasses.fields(ours):
        wanted, given = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name not in free and wanted not in (getattr(default, field.name), given):
            raise RecipeError(
                f"{section}.{field.name}={wanted}: the model of model.init has {given}; leave the setting out"
            )


def _first_reason(error: ValueError) -> str:
    """The message of a settings check, without what pydantic writes around it."""
    problems = getattr(error, "errors", None)
    return problems()[0]["msg"].removeprefix("Value error, ") if problems else str(error)
