"""Everything a training needs before its first step: data, tokenizer, model; every mistake shows here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddcap.data.caption_data import CaptionData, ConceptSource, PixelSource
from ddcap.data.coco import check_folders
from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.feature_cache import FeatureCache
from ddcap.data.karpathy import CaptionedImage
from ddcap.data.records import load_records
from ddcap.data.shard_data import ShardData
from ddcap.data.text_only import load_text_groups, load_texts
from ddcap.data.tokenizer import CaptionTokenizer, build_tokenizer
from ddcap.errors import CheckpointError, DataError, RecipeError
from ddcap.model.ddcap import DDCapModel
from ddcap.model.image_encoder import ImageEncoder, build_image_encoder
from ddcap.model.kinds import CaptioningModel, build_model
from ddcap.model.recompute import recompute_blocks
from ddcap.model.stored_model import ModelConfig
from ddcap.processes import ALONE, Processes
from ddcap.recipe import DataSettings, Recipe
from ddcap.training.checkpoint import list_checkpoints, load_progress
from ddcap.training.initial import load_initial
from ddcap.training.resumption import check_unchanged
from ddcap.training.tags import DrawnTags, StoredTags, load_tagging

ProgressBar = Callable[[list[int]], Iterable[int]]


@dataclass(frozen=True)
class TrainingInputs:
    """What `prepare` made.

    Attributes:
        recipe: as given, with the architecture of `model.init` filled in.
        model: on the CPU, weights drawn from the recipe's seed or those of `model.init`.
        tokenizer: trained or loaded; already saved in the output folder.
        train_data: the training split.
        val_data: the validation split, plain views.
        output: the run's folder.
        beside_data: captions without pictures, read beside them.
    """

    recipe: Recipe
    model: CaptioningModel
    tokenizer: CaptionTokenizer
    train_data: CaptionData | ShardData
    val_data: CaptionData
    output: Path
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
            f"{output}: already holds a run; add --resume to go on, or set training.output=..."
        )
    if resume and not checkpoints:
        raise CheckpointError(f"{output}: holds no checkpoint to resume from; leave out --resume to start")
    if resume:
        check_unchanged(load_progress(checkpoints[-1]).recipe, recipe, output)
    train_records = [] if recipe.data.shards else _load_split(recipe.data, "train")
    val_records = _load_split(recipe.data, "val")
    if recipe.data.text is not None:
        train_records += load_texts(Path(recipe.data.root) / recipe.data.text)
    beside = [
        record
        for source in recipe.data.beside
        for record in load_text_groups(Path(recipe.data.root) / source.path) * source.weight
    ]
    output.mkdir(parents=True, exist_ok=True)
    if resume:
        tokenizer = CaptionTokenizer.load(output)
    else:
        texts = (text for record in [*train_records, *beside] for text in record.captions)
        tokenizer = initial.tokenizer or build_tokenizer(recipe.tokenizer, texts)
        tokenizer.save(output)
    tagging = load_tagging(recipe.encoder.tagger) if recipe.encoder.tagger is not None else None
    if tagging is not None:
        encoder: ImageEncoder = tagging.encoder(recipe.encoder)
    else:
        encoder = initial.encoder or build_image_encoder(recipe.encoder)
    encoder.to(device)
    vocabulary = tagging.vocabulary if tagging else initial.model.vocabulary if initial.model else None

    def data(
        records: list[CaptionedImage],
        views: int,
        concepts: ConceptSource | None = None,
    ) -> CaptionData:
        source = None
        if recipe.data.text is None and not isinstance(concepts, DrawnTags):
            source = _source(recipe, encoder, records, views, progress, processes)
        return CaptionData(records, tokenizer, source, recipe.data, recipe.model.max_length, concepts)

    train_data: CaptionData | ShardData
    if recipe.data.shards:
        train_data = ShardData(recipe.data, tokenizer, encoder.preprocessing, recipe.model.max_length)
    else:
        tags = StoredTags(tagging.tags_path, train_records) if tagging is not None else None
        train_data = data(train_records, recipe.data.views, tags)
    val_data = data(val_records, 1)
    beside_data = None
    if beside:
        if tagging is None:
            raise RecipeError("data.beside: concepts of captions are drawn as a tagger's; set encoder.tagger")
        tags_of_text = DrawnTags(tagging.noise, tagging.vocabulary, beside, recipe.encoder.concepts)
        beside_data = data(beside, 1, tags_of_text)
    config = ModelConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        encoder=replace(recipe.encoder, tagger=None, stored=recipe.encoder.travels),
        model=replace(recipe.model, init=None),  # the new model stands by itself
        diffusion=recipe.diffusion,
        decoding=recipe.decoding,
        concepts=len(vocabulary) if vocabulary is not None else 0,
    )
    torch.manual_seed(recipe.training.seed)
    model = build_model(config, encoder).cpu()
    if initial.model is not None:
        weights = initial.model.state_dict()
        if tagging is not None:  # an encoder with a tagger that the recipe names replaces the model's own
            _check_same_concepts(recipe, initial.model.vocabulary, tagging.vocabulary)
            weights.update({f"encoder.{name}": value for name, value in encoder.state_dict().items()})
        model.load_state_dict(weights)
    if vocabulary is not None:
        model.set_vocabulary(vocabulary, tokenizer)
    _freeze_unused(model, recipe)
    if recipe.training.gradient_checkpointing:
        recompute_blocks(model)
    return TrainingInputs(recipe, model, tokenizer, train_data, val_data, output, beside_data)


def _check_same_concepts(recipe: Recipe, theirs: ConceptVocabulary | None, ours: ConceptVocabulary) -> None:
    """The embedding of a trained model's concepts goes by their numbers."""
    if theirs is None or theirs.words != ours.words:
        raise RecipeError(
            f"encoder.tagger={recipe.encoder.tagger}: sees other concepts than the model of "
            f"model.init={recipe.model.init}; leave one of them out"
        )


def _freeze_unused(model: CaptioningModel, recipe: Recipe) -> None:
    """Take the gradient from what this training never uses: several processes would wait for it."""
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
    if settings.text is None:
        check_folders(record.path for record in records)
    return records


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
