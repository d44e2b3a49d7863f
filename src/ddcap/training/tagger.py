"""Training of the tagger: evidence about captioned images to the words of their captions.

Shapes: R images, E numbers of evidence, N concepts, K concepts kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.feature_cache import FeatureCache
from ddcap.data.records import CaptionedImage, load_records
from ddcap.errors import RecipeError
from ddcap.files import replacing
from ddcap.model.concepts import Tagger, strongest
from ddcap.model.encoders import TaggingEncoder, build_image_encoder
from ddcap.recipe import Recipe, TaggerSettings
from ddcap.training.start import ProgressBar
from ddcap.training.tags import ENCODER_NAME, TAGS_NAME, ConceptNoise

# What a tagger is trained on: evidence about images, and the concepts that captions or labels name.


@dataclass(frozen=True)
class Evidence:
    """Images as the tagger sees them.

    Attributes:
        seen: (R, views, E).
        named: (R, N) share of each image's captions that name a concept.
        asked: (R, N) True where that is known: a label says nothing of what it is not about.
    """

    seen: Tensor
    named: Tensor
    asked: Tensor

    def rows(self, chosen: Tensor) -> Evidence:
        """Some of the images."""
        return Evidence(self.seen[chosen], self.named[chosen], self.asked[chosen])

    def followed_by(self, other: Evidence | None) -> Evidence:
        """These images, then those of `other`."""
        if other is None:
            return self
        pairs = ((self.seen, other.seen), (self.named, other.named), (self.asked, other.asked))
        return Evidence(*(torch.cat(pair) for pair in pairs))


def read_class_words(path: Path, vocabulary: ConceptVocabulary) -> list[tuple[int, int, float]]:
    """Rows (class, concept, weight) of a JSON {class: {words: {word: weight}}} of concepts."""
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (int(number), vocabulary.number(word), float(weight))
            for number, entry in classes.items()
            for word, weight in entry["words"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"tagger.class_words={path}: cannot be read ({error})") from None
    return [(number, concept, weight) for number, concept, weight in rows if concept is not None]


def named_shares(records: Sequence[CaptionedImage], vocabulary: ConceptVocabulary) -> Tensor:
    """(R, N) share of each record's captions that name a concept."""
    named = torch.zeros(len(records), len(vocabulary))
    for row, record in enumerate(records):
        for concept, share in vocabulary.shares(record.captions).items():
            named[row, concept] = share
    return named


def captioned_evidence(
    records: Sequence[CaptionedImage], cache: FeatureCache, views: int, vocabulary: ConceptVocabulary
) -> Evidence:
    """Of captioned images, in their order."""
    seen = [torch.stack([cache.read(row, view)[1] for view in range(views)]) for row in range(len(records))]
    named = named_shares(records, vocabulary)
    return Evidence(torch.stack(seen), named, torch.ones_like(named, dtype=torch.bool))


def labelled_evidence(
    recipe: Recipe,
    encoder: TaggingEncoder,
    vocabulary: ConceptVocabulary,
    progress_bar: ProgressBar,
    views: int,
) -> Evidence | None:
    """Images with labels; each set is asked about the concepts that any of its labels names."""
    if recipe.tagger.labelled is None:
        return None
    assert recipe.data.cache is not None
    root = Path(recipe.data.root)
    entries = read_labelled(root / recipe.tagger.labelled)
    folder = root / recipe.data.images
    paths = [folder / entry.get("filepath", "") / entry["filename"] for entry in entries]
    cache = FeatureCache(recipe.data.cache, encoder, paths, 1, progress_bar, bf16=recipe.training.bf16)
    seen = torch.stack([cache.read(row, 0)[1] for row in range(len(paths))])
    named = torch.zeros(len(entries), len(vocabulary))
    for row, entry in enumerate(entries):
        for label in entry["labels"]:
            named[row, vocabulary.find(label)] = 1.0
    asked = torch.zeros_like(named, dtype=torch.bool)
    sets = [entry.get("set", "") for entry in entries]
    for name in set(sets):
        rows = torch.tensor([own == name for own in sets])
        asked[rows] = (named[rows] > 0).any(dim=0)
    return Evidence(seen.unsqueeze(1).expand(-1, views, -1), named, asked)


def read_labelled(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON {images: [{filepath, filename, set, labels}]}.

    Raises:
        RecipeError: if it is none.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        for entry in entries:
            str(entry["filename"]), list(entry["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"tagger.labelled={path}: cannot be read ({error!r})") from None
    return list(entries)


logger = logging.getLogger("ddcap")

_OFTEN = 0.4  # share of an image's captions from which on a concept is plainly there


def train_tagger(recipe: Recipe, *, progress_bar: ProgressBar = iter) -> Path:
    """Train the tagger that a recipe describes.

    Writes into `tagger.output`: the weights of the tagger, the concepts' words, the tags of the
    training images (each by a tagger that has not seen it), and how tags are wrong, which training on text
    imitates.

    Args:
        recipe: sections data, encoder and tagger are read.
        progress_bar: wraps the feature cache's missing shards.

    Returns:
        The folder.

    Raises:
        RecipeError: if a setting is missing.
        DataError: if the data cannot be used.
    """
    settings = recipe.tagger
    for name in ("concepts", "class_words"):
        if getattr(settings, name) is None:
            raise RecipeError(f"tagger.{name} is not set; see recipes/default/tagger.yaml for an example")
    if not recipe.encoder.concepts or recipe.data.cache is None:
        raise RecipeError("a tagger needs encoder.concepts (concepts per image) and data.cache; set both")
    assert settings.concepts and settings.class_words
    vocabulary = ConceptVocabulary.load(Path(settings.concepts).parent)
    encoder = build_image_encoder(recipe.encoder, concepts=len(vocabulary))
    assert isinstance(encoder, TaggingEncoder)
    names = read_class_words(Path(settings.class_words), vocabulary)
    root = Path(recipe.data.root)
    parts: dict[str, tuple[list[CaptionedImage], Evidence]] = {}
    for split, views in (("train", recipe.data.views), ("val", 1)):
        records = load_records(root / recipe.data.json, root / recipe.data.images, split)
        cache = FeatureCache(
            recipe.data.cache,
            encoder,
            [record.path for record in records],
            views,
            progress_bar,
            bf16=recipe.training.bf16,
        )
        parts[split] = records, captioned_evidence(records, cache, views, vocabulary)
    (train_records, train), (_, val) = parts["train"], parts["val"]
    labelled = labelled_evidence(recipe, encoder, vocabulary, progress_bar, views=train.seen.shape[1])
    probabilities = logits_by_folds(encoder.tagger, names, train, settings, labelled).sigmoid()
    tagger = fit(encoder.tagger, names, train.followed_by(labelled), settings)
    logger.warning("val: %s", describe(predict(tagger, val.seen)[:, 0], val.named))
    encoder.tagger.load_state_dict(tagger.state_dict())
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in encoder.state_dict().items()
        if name.startswith("tagger.")
    }
    output, kept = Path(settings.output), recipe.encoder.concepts
    save_tagging(output, weights, vocabulary, train_records, probabilities, train.named, kept)
    return output


def logits_by_folds(
    like: Tagger,
    names: Sequence[tuple[int, int, float]],
    data: Evidence,
    settings: TaggerSettings,
    labelled: Evidence | None = None,
) -> Tensor:
    """Logits (R, views, N) of `data`, each image's by a tagger that has not seen it, but `labelled`."""
    fold = torch.arange(len(data.seen)) % settings.folds
    logits = torch.zeros(*data.seen.shape[:2], data.named.shape[1])
    for number in range(settings.folds):
        inside, outside = fold != number, fold == number
        tagger = fit(like, names, data.rows(inside).followed_by(labelled), settings)
        logits[outside] = _logits(tagger, data.seen[outside])
        told = describe(logits[outside][:, 0].sigmoid(), data.named[outside])
        logger.warning("fold %d: %s", number, told)
    return logits


def fit(
    like: Tagger, names: Sequence[tuple[int, int, float]], data: Evidence, settings: TaggerSettings
) -> Tagger:
    """A tagger of the shape of `like`, trained on `data`."""
    torch.manual_seed(settings.seed)
    concepts, evidence = data.named.shape[1], data.seen.shape[2]
    tagger = Tagger(evidence, concepts, classes_at=like.classes_at, width=settings.width)
    tagger.set_names(names)
    tagger.dropout_in.p, tagger.dropout.p = settings.dropout_in, settings.dropout
    flat = data.seen.flatten(0, 1).float()
    tagger.mean.copy_(flat.mean(dim=0))
    tagger.scale.copy_(1 / (flat.std(dim=0) + 1e-3))
    learned = (data.named > 0).sum(dim=0) >= settings.fewest  # (N,)
    asked = data.asked & learned
    share = (data.named.sum(dim=0) / asked.sum(dim=0).clamp(min=1)).clamp(1e-5, 1 - 1e-5)
    with torch.no_grad():
        tagger.output.bias.copy_(
            share.logit() + 3.0
        )  # what names say is about -7 times 0.5 where there is none
    own = [tagger.hidden.weight, tagger.output.weight]
    rest = [tagger.hidden.bias, tagger.output.bias, tagger.from_names]
    optimizer = torch.optim.AdamW(
        [{"params": own, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )
    rows, views = data.seen.shape[:2]
    size = min(settings.batch_size, rows)
    steps = settings.epochs * (rows // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, max(steps, 1))
    generator = torch.Generator().manual_seed(settings.seed)
    tagger.train()
    for _ in range(settings.epochs):
        order = torch.randperm(rows, generator=generator)
        for chosen in order[: rows // size * size].split(size):
            view = torch.randint(views, (len(chosen),), generator=generator)
            loss = F.binary_cross_entropy_with_logits(
                tagger(data.seen[chosen, view]),
                data.named[chosen],
                weight=asked[chosen].float(),
                reduction="sum",
            )
            (loss / len(chosen)).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    tagger.eval()
    _name_the_rest(tagger, data, learned)
    return tagger


@torch.no_grad()
def _name_the_rest(tagger: Tagger, data: Evidence, learned: Tensor) -> None:
    """Concepts that too few captions name are believed as others of which a class name speaks."""
    named = torch.zeros_like(learned)
    named[tagger.name_concept[tagger.name_weight > 0.5]] = True
    said = tagger.named(data.seen[:, 0].float())
    both = learned & named & data.asked.all(dim=0)
    with torch.enable_grad():
        line = torch.tensor([0.7, -0.5], requires_grad=True)
        optimizer = torch.optim.LBFGS([line], max_iter=50)

        def loss() -> Tensor:
            optimizer.zero_grad()
            # any caption that names it counts: of rare words a person's captions seldom all agree
            value = F.binary_cross_entropy_with_logits(line[0] * said[:, both] + line[1], data.named[:, both])
            value.backward()
            return value

        optimizer.step(loss)
    slope, offset = line.detach()
    tagger.output.weight[~learned] = 0
    tagger.output.bias[~learned] = torch.where(named[~learned], offset, torch.tensor(-12.0))
    tagger.from_names[~learned] = slope


@torch.inference_mode()
def predict(tagger: Tagger, seen: Tensor) -> Tensor:
    """Probabilities (R, views, N) for `seen` (R, views, E)."""
    return _logits(tagger, seen).sigmoid()


@torch.inference_mode()
def _logits(tagger: Tagger, seen: Tensor) -> Tensor:
    return torch.stack([tagger(part.float()) for part in seen.unbind(dim=1)], dim=1)


def describe(probabilities: Tensor, named: Tensor) -> str:
    """Measure tags: precision of the strongest, mean average precision, calibration."""
    there = named > 0
    order = probabilities.argsort(dim=1, descending=True)
    top = [there.gather(1, order[:, :count]).float().mean() for count in (3, 5, 10)]
    plain = named >= _OFTEN
    kept = plain.sum(dim=0) >= 3
    scores = []
    for number in kept.nonzero().flatten().tolist():
        hits = plain[probabilities[:, number].argsort(descending=True), number]
        scores.append((hits.cumsum(0) / torch.arange(1, len(hits) + 1))[hits].mean())
    mean = torch.stack(scores).mean() if scores else torch.tensor(float("nan"))
    expected, observed = probabilities.sum(dim=1).mean(), named.sum(dim=1).mean()
    return (
        f"of the 3, 5, 10 strongest {100 * top[0]:.1f}, {100 * top[1]:.1f}, {100 * top[2]:.1f} % were named, "
        f"mean average precision {100 * mean:.1f} of {int(kept.sum())} concepts, "
        f"{expected:.2f} concepts expected and {observed:.2f} named by a caption"
    )


def save_tagging(
    folder: Path,
    weights: Mapping[str, Tensor],
    vocabulary: ConceptVocabulary,
    records: Sequence[CaptionedImage],
    probabilities: Tensor,
    named: Tensor,
    count: int,
) -> None:
    """Write what `load_tagging` reads.

    Args:
        folder: made if missing.
        weights: of the encoder, by their names there.
        vocabulary: of the concepts.
        records: R training images.
        probabilities: (R, views, N) by taggers that have not seen the images.
        named: (R, N) share of each image's captions that name a concept.
        count: K.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / ENCODER_NAME) as temporary:
        save_file(dict(weights), temporary)
    vocabulary.save(folder)
    save_tags(folder / TAGS_NAME, records, probabilities, count)
    ConceptNoise.measure(probabilities[:, 0], named, count).save(folder)


def save_tags(path: Path, records: Sequence[CaptionedImage], probabilities: Tensor, count: int) -> None:
    """Write the `count` strongest tags of every view of every image, by the images' ids."""
    tags = strongest(probabilities.flatten(0, 1), count)
    shape = (*probabilities.shape[:2], -1)
    tensors = {
        "ids": tags.ids.view(shape).to(torch.int16).contiguous(),
        "confidences": tags.confidences.view(shape).half().contiguous(),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"images": json.dumps([record.image_id for record in records])})
