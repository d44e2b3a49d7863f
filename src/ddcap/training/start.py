"""Everything a training needs before its first step: data, tokenizer, model; every mistake shows here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddcap.data.batches import CaptionData, ConceptSource, PixelSource
from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.feature_cache import FeatureCache
from ddcap.data.records import (
    CaptionedImage,
    check_folders,
    load_records,
    load_text_groups,
    load_texts,
    take_share,
)
from ddcap.data.shards import ShardData
from ddcap.data.tokenizer import CaptionTokenizer, build_tokenizer
from ddcap.errors import CheckpointError, DataError, RecipeError
from ddcap.machine import ALONE, Processes
from ddcap.model.config import ModelConfig
from ddcap.model.ddcap import DDCapModel
from ddcap.model.encoders import ImageEncoder, build_image_encoder
from ddcap.model.layers import recompute_blocks
from ddcap.model.loading import TorchModel, build_model, load_model
from ddcap.publishing import find_model
from ddcap.recipe import DataSettings, Recipe
from ddcap.section import Section
from ddcap.settings import EncoderSettings, TokenizerSettings
from ddcap.training.checkpoint import (
    caption_digest,
    check_same_captions,
    check_unchanged,
    list_checkpoints,
    load_progress,
)
from ddcap.training.tags import DetectedTags, DrawnTags, StoredTags, Tagging, load_tagging

# Training that starts from a trained model (`model.init`). The architecture is taken over, and the tokenizer.

_TRAINING_OF_ENCODER = ("trainable", "tagger")
_JUDGE = ("judge", "judge_layers")  # may be added to a trained model


@dataclass(frozen=True)
class Initial:
    """The start of a training.

    Attributes:
        recipe: with the architecture of the model to start from filled in.
        model: the model of `model.init`, if there is one.
        tokenizer: its tokenizer.
        encoder: its encoder.
    """

    recipe: Recipe
    model: TorchModel | None = None
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
    _check_same("model", recipe.model, theirs.model, source, free=("init", "dropout", *_JUDGE))
    _check_same("diffusion", recipe.diffusion, theirs.diffusion, source)
    _check_tokenizer(recipe.tokenizer, tokenizer, source)
    encoder = _fit_encoder(recipe.encoder, model, source)
    fitted: Recipe = _changed(
        recipe,
        source,
        model=dataclasses.replace(theirs.model, init=init, **_given(recipe.model, "dropout", *_JUDGE)),
        encoder=encoder,
        diffusion=theirs.diffusion,
        decoding=_changed(theirs.decoding, source, **_given(recipe.decoding, *recipe.decoding.given)),
    )
    return Initial(fitted, model, tokenizer, model.encoder)


def _fit_encoder(ours: EncoderSettings, model: TorchModel, source: str) -> EncoderSettings:
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
                f"{name}.{setting}={wanted}: the model in {source} has {has}; remove the setting"
            )


def _check_tokenizer(asked: TokenizerSettings, theirs: CaptionTokenizer, source: str) -> None:
    """Of the same kind, if compact of at most so many entries."""
    wrong_kind = "kind" in asked.given and asked.kind != theirs.kind
    too_large = "vocabulary_size" in asked.given and theirs.vocabulary_size > asked.vocabulary_size
    if wrong_kind or (too_large and theirs.kind == "compact"):
        raise RecipeError(f"{source} has its own tokenizer; remove the tokenizer section")


def _first_reason(error: ValueError) -> str:
    """The message of a settings check, without what pydantic writes around it."""
    problems = getattr(error, "errors", None)
    return problems()[0]["msg"].removeprefix("Value error, ") if problems else str(error)


ProgressBar = Callable[[list[int]], Iterable[int]]


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs that `prepare` made.

    Attributes:
        recipe: as given, with the architecture of `model.init` filled in.
        model: on the CPU, weights drawn from the recipe's seed or those of `model.init`.
        tokenizer: trained or loaded; already saved in the output folder.
        train_data: the training split.
        val_data: the validation split, plain views.
        output: the run's folder.
        captions: `checkpoint.caption_digest` of the data.
        beside_data: captions without images, read beside them.
    """

    recipe: Recipe
    model: TorchModel
    tokenizer: CaptionTokenizer
    train_data: CaptionData | ShardData
    val_data: CaptionData
    output: Path
    captions: str
    beside_data: CaptionData | None = None


def prepare(
    recipe: Recipe,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
    *,
    resume: bool,
    progress: ProgressBar = iter,
) -> TrainingInputs:
    """Read the data, build tokenizer, encoder, feature cache and model.

    Args:
        recipe: all settings.
        device: where the feature cache is computed.
        processes: that build the feature cache together.
        resume: whether the output folder is expected to hold a run.
        progress: wraps the shards of the feature cache that are still to be computed.

    Raises:
        CheckpointError: if the output folder holds a run and `resume` is off, or none and it is on.
        DataError: if the data cannot be used.
        RecipeError: if the recipe cannot be followed, or is not the one of the run to go on with.
    """
    initial = load_initial(recipe)
    recipe = initial.recipe
    output = Path(recipe.training.output)
    checkpoints = list_checkpoints(output)
    if checkpoints and not resume:
        raise CheckpointError(
            f"{output}: already contains a run; add --resume to continue it, or set training.output=..."
        )
    if resume and not checkpoints:
        raise CheckpointError(f"{output}: contains no checkpoint; remove --resume to start a new run")
    before = load_progress(checkpoints[-1]) if resume else None
    if before is not None:
        check_unchanged(before.recipe, recipe, output)
    train_records = [] if recipe.data.shards else _load_split(recipe.data, "train")
    val_records = _load_split(recipe.data, "val")
    distilled = None
    if recipe.data.distilled is not None:
        train_records, distilled = add_distilled(recipe.data, train_records)
    if recipe.data.text is not None:
        train_records += load_texts(Path(recipe.data.root) / recipe.data.text)
    beside = [
        record
        for source in recipe.data.beside
        for record in load_text_groups(Path(recipe.data.root) / source.path) * source.weight
    ]
    taught = [
        replace(record, captions=tuple(texts))
        for record, texts in zip(train_records, distilled or (), strict=False)
    ]
    digest = caption_digest([*train_records, *val_records, *beside, *taught])
    if before is not None:
        check_same_captions(before.captions, digest, output, f"data.json={recipe.data.json}")
    output.mkdir(parents=True, exist_ok=True)
    if resume:
        tokenizer = CaptionTokenizer.load(output)
    else:
        texts = (text for record in [*train_records, *beside] for text in record.captions)
        tokenizer = initial.tokenizer or build_tokenizer(recipe.tokenizer, texts)
        tokenizer.save(output)
    encoder, tagging = _eyes(initial)
    encoder.to(device)
    vocabulary = tagging.vocabulary if tagging else initial.model.vocabulary if initial.model else None

    def data(
        records: list[CaptionedImage],
        views: int,
        concepts: ConceptSource | None = None,
        distilled: Sequence[Sequence[str]] | None = None,
    ) -> CaptionData:
        source = None
        if recipe.data.text is None and not isinstance(concepts, DrawnTags):
            source = _source(recipe, encoder, records, views, progress, processes)
        detector = initial.model.detector if initial.model is not None and tagging is None else None
        if isinstance(source, FeatureCache) and detector is not None and detector.tells_concepts:
            paths = [record.path for record in records]
            concepts = DetectedTags(detector, source, paths, encoder.preprocessing, recipe.encoder.concepts)
        settings = recipe.data if records is train_records else replace(recipe.data, held_out=None)
        return CaptionData(records, tokenizer, source, settings, recipe.model.max_length, concepts, distilled)

    train_data: CaptionData | ShardData
    if recipe.data.shards:
        train_data = ShardData(recipe.data, tokenizer, encoder.preprocessing, recipe.model.max_length)
    else:
        tags = StoredTags(tagging.tags_path, train_records) if tagging is not None else None
        train_data = data(train_records, recipe.data.views, tags, distilled)
    val_data = data(val_records, 1)
    beside_data = None
    if beside:
        if tagging is None:
            raise RecipeError("data.beside: needs the concepts of a tagger; set encoder.tagger")
        tags_of_text = DrawnTags(tagging.noise, tagging.vocabulary, beside, recipe.encoder.concepts)
        beside_data = data(beside, 1, tags_of_text)
    config = ModelConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        encoder=replace(recipe.encoder, tagger=None, stored=recipe.encoder.travels),
        model=replace(recipe.model, init=None),  # the new model stands by itself
        diffusion=recipe.diffusion,
        decoding=recipe.decoding,
        concepts=len(vocabulary) if vocabulary is not None else 0,
        persons=initial.model is not None and initial.model.config.persons,
    )
    torch.manual_seed(recipe.training.seed)
    model = build_model(config, encoder).cpu()
    if initial.model is not None:
        weights = initial.model.state_dict()
        judge, theirs = getattr(model, "judge", None), initial.model
        if judge is not None and isinstance(theirs, DDCapModel) and theirs.judge is None:
            judge.start_from(theirs.denoiser)
        if tagging is not None:  # an encoder with a tagger that the recipe names replaces the model's own
            _check_same_concepts(recipe, initial.model.vocabulary, tagging.vocabulary)
            weights.update({f"encoder.{name}": value for name, value in encoder.state_dict().items()})
        new = {name: value for name, value in model.state_dict().items() if _is_of_judge(name)}
        model.load_state_dict({**new, **weights})
    if vocabulary is not None:
        model.set_vocabulary(vocabulary, tokenizer)
    if initial.model is not None:
        model.detector = initial.model.detector
    _freeze_unused(model, recipe)
    if recipe.training.gradient_checkpointing:
        recompute_blocks(model)
    return TrainingInputs(recipe, model, tokenizer, train_data, val_data, output, digest, beside_data)


def _is_of_judge(name: str) -> bool:
    return name.startswith("judge.") or name == "denoiser.reading_embedding"


def _check_same_concepts(recipe: Recipe, theirs: ConceptVocabulary | None, ours: ConceptVocabulary) -> None:
    """The embedding of a trained model's concepts goes by their numbers."""
    if theirs is None or theirs.words != ours.words:
        raise RecipeError(
            f"encoder.tagger={recipe.encoder.tagger}: its concepts differ from those of the model in "
            f"model.init={recipe.model.init}; remove one of them"
        )


def _freeze_unused(model: TorchModel, recipe: Recipe) -> None:
    """Take the gradient from what this training never uses: several processes would wait for it."""
    if recipe.training.judge_only and isinstance(model, DDCapModel) and model.judge is not None:
        model.requires_grad_(False)
        model.judge.requires_grad_(True)
        return
    sees = recipe.data.text is None
    if not sees:
        model.memory_projection.requires_grad_(False)
        model.encoder.requires_grad_(False)
    if isinstance(model, DDCapModel):
        if sees and not recipe.training.image_free_probability:
            model.image_free_memory.requires_grad_(False)
        if not sees and model.length_head is not None:
            model.length_head.requires_grad_(False)
    elif not sees:
        model.decoder.freeze_cross_attention()


def _load_split(settings: DataSettings, split: str) -> list[CaptionedImage]:
    root = Path(settings.root)
    if not root.is_dir():
        raise DataError(
            f"data.root={settings.root}: no such folder; set data.root to the folder of your data set"
        )
    records = load_records(root / settings.json, root / settings.images, split, settings.val_share)
    if split == "train" and settings.train_share < 1:
        records = take_share(records, settings.train_share)
    if settings.text is None:
        check_folders(record.path for record in records)
    return records


def _eyes(initial: Initial) -> tuple[ImageEncoder, Tagging | None]:
    """The encoder that the recipe asks for, the initial model's or a new one, and its tagger's run if any."""
    settings = initial.recipe.encoder
    if settings.tagger is not None:
        tagging = load_tagging(settings.tagger)
        return tagging.encoder(settings), tagging
    return initial.encoder or build_image_encoder(settings), None


def load_training_images(recipe: Recipe, tokenizer: CaptionTokenizer) -> CaptionData:
    """All images of the training split, with people's captions and what a training sees of the images.

    Raises:
        DataError: if the data cannot be used.
        RecipeError: if the recipe trains on shards.
    """
    if recipe.data.shards:
        raise RecipeError("data.shards: cannot be distilled; set data.json to the images and captions")
    initial = load_initial(recipe)
    recipe = initial.recipe
    records = _load_split(recipe.data, "train")
    encoder, tagging = _eyes(initial)
    tags = StoredTags(tagging.tags_path, records) if tagging is not None else None
    source = _source(recipe, encoder, records, recipe.data.views, iter, ALONE)
    settings = replace(recipe.data, held_out=None, distilled=None)
    return CaptionData(records, tokenizer, source, settings, recipe.model.max_length, tags)


def add_distilled(
    settings: DataSettings, records: list[CaptionedImage]
) -> tuple[list[CaptionedImage], list[tuple[str, ...]]]:
    """The records and each one's captions by a teacher; images that only a teacher captioned come last.

    Raises:
        DataError: if the file cannot be used, or has no image of the training split.
    """
    root = Path(settings.root)
    assert settings.distilled is not None
    taught = load_records(root / settings.distilled, root / settings.images, "train", settings.val_share)
    of_path = {record.path: record.captions for record in taught}
    known = {record.path for record in records}
    new = [replace(record, captions=()) for record in taught if record.path not in known]
    check_folders(record.path for record in new)
    return [*records, *new], [of_path.get(record.path, ()) for record in [*records, *new]]


def build_feature_cache(
    recipe: Recipe, device: torch.device | str, share: tuple[int, int], *, also: Sequence[str] = ()
) -> None:
    """Compute a process's share of the features that a training from a frozen encoder reads.

    Args:
        recipe: without `model.init`.
        device: where the encoder computes.
        share: index and number of the processes that do it together.
        also: further splits of the data set, in plain views.

    Raises:
        DataError: if the data cannot be used.
    """
    if recipe.data.cache is None:
        return
    encoder = build_image_encoder(recipe.encoder).to(device)
    processes = Processes(share[1], share[0], ALONE.gather)
    for split, views in (("train", recipe.data.views), *((one, 1) for one in ("val", *also))):
        _source(recipe, encoder, _load_split(recipe.data, split), views, iter, processes)


def _source(
    recipe: Recipe,
    encoder: ImageEncoder,
    records: list[CaptionedImage],
    views: int,
    progress: ProgressBar,
    processes: Processes,
) -> FeatureCache | PixelSource:
    paths = [record.path for record in records]
    if recipe.data.cache is None:
        return PixelSource(paths, encoder.preprocessing)
    share = (processes.index, processes.count)
    return FeatureCache(
        recipe.data.cache, encoder, paths, views, progress, bf16=recipe.training.bf16, share=share
    )
