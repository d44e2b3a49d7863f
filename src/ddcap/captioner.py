"""The main class: load a model once, then caption, infill, score and rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.arrays import Array
from ddcap.data.concepts import ConceptEdits
from ddcap.data.images import load_image
from ddcap.data.sources import ImageSource
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.allowed_tokens import Vocabulary
from ddcap.decoding.caption import Caption, Concept, ImageResult, PersonsSeen, what_is_seen
from ddcap.decoding.confidence import Confidence
from ddcap.decoding.constraints import Constraints
from ddcap.decoding.finishing import Confident, finish
from ddcap.decoding.generate import CaptionRequest
from ddcap.decoding.infilling import infill, parse_template
from ddcap.decoding.overrides import overridden
from ddcap.decoding.rewriting import Rewriting, rewrite
from ddcap.decoding.scoring import CaptionEvidence, caption_evidence, sampler_evidence
from ddcap.decoding.stream import caption_stream
from ddcap.decoding.words import straight
from ddcap.errors import CheckpointError, DDCapError, ImageError, RecipeError
from ddcap.machine import computing
from ddcap.model.features import ImageFeatures
from ddcap.model.generation_config import own_names
from ddcap.model.loading import Runtime, check_choice, load_runtime
from ddcap.model.precision import Precision, fastest_precision
from ddcap.model.protocol import CaptioningModel
from ddcap.publishing import DEFAULT_MODEL, find_model, push, save_model
from ddcap.settings import DecodingSettings
from ddcap.values import as_text, as_texts, as_whole, as_wholes


class Captioner:
    """Captions images with a trained model. Load one with `from_pretrained` and reuse it.

    Args:
        model: a PyTorch model in evaluation mode, or a model loaded as ONNX graphs.
        tokenizer: the model's tokenizer.
        precision: precision of a PyTorch model: "float32"; "bfloat16", about twice as fast if the machine
            supports it, with other captions where two words are almost equally likely; "auto" uses bfloat16
            if the machine supports it. ONNX graphs keep the precision that they were loaded with.
        confidence: the model's calibration; None if it has none.
        watch: is told captions (B, L) before each step of `caption_each`, MASK where there is no word yet.

    Attributes:
        precision: "float32", "bfloat16" or "int8".
        runtime: "torch" or "onnx".
    """

    def __init__(
        self,
        model: CaptioningModel,
        tokenizer: CaptionTokenizer,
        precision: Precision = "auto",
        confidence: Confidence | None = None,
        watch: Callable[[Array], None] | None = None,
    ) -> None:
        check_choice("precision", precision, Precision)
        if tokenizer.vocabulary_size != model.config.vocabulary_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocabulary_size} entries, the model "
                f"{model.config.vocabulary_size}; use the tokenizer and model of one training"
            )
        loaded: Any = model  # of either runtime, each with more than both have
        self.model, self.tokenizer, self.confidence, self._watch = loaded, tokenizer, confidence, watch
        self.runtime: str = getattr(model, "runtime", "torch")
        if self.runtime == "onnx":
            precision = self.model.precision
        elif precision == "int8":
            raise DDCapError("precision='int8': needs ONNX graphs; use float32 or bfloat16 in PyTorch")
        elif precision == "auto":
            precision = fastest_precision("torch", str(model.device)).precision
        self.precision: Precision = precision
        if self.runtime == "torch":
            self.model.eval()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        device: Any = "cpu",
        precision: Precision = "auto",
        runtime: Runtime = "auto",
        cuda_graphs: bool = False,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Captioner:
        """Load a model.

        Args:
            model: "default" (part of the package), a folder, or a Hub id.
            device: device to run on, for example "cpu" or "cuda".
            precision: "float32"; "bfloat16" (PyTorch only); "int8" (ONNX only); "auto" takes the fastest.
            runtime: "onnx" needs no PyTorch, runs on the CPU, and needs a folder with ONNX graphs, such as
                the default or the output of `ddcap export --onnx`; "torch" runs every model on any device;
                "auto" takes "onnx" if it can.
            cuda_graphs: on a GPU, record each step's kernels once for each shape, and replay them: a batch
                of few images is captioned faster, the first ones of each shape more slowly.
            revision: branch, tag or commit of a Hub id; this and the rest as in `publishing.find_model`.
            token: for a private model.
            cache_dir: where downloads lie.
            local_files_only: whether not to ask the Hub.

        Raises:
            CheckpointError: if the model does not exist or is damaged.
            DDCapError: if the device, precision or runtime is not available.
            MissingExtraError: if the model needs PyTorch and PyTorch is not installed.
        """
        folder = find_model(
            model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        loaded = load_runtime(folder, str(model), device, precision, runtime, cuda_graphs)
        return cls(loaded, loaded.tokenizer, precision, Confidence.load(folder))

    @property
    def decoding(self) -> DecodingSettings:
        """The model's default decoding settings."""
        return self.model.config.decoding

    def settings(self, **changes: Any) -> DecodingSettings:
        """The model's decoding settings with `changes`, see `decoding.overrides.overridden`.

        `preset` is "fast" or "best" (see `presets.PRESETS`); other changes override it.

        Raises:
            RecipeError: if a setting is unknown or wrong.
        """
        return overridden(self.model.config, changes)

    def save_pretrained(self, folder: str | Path, dtype: Any = None, **settings: Any) -> None:
        """Write (or copy, if it runs as ONNX graphs) the model and what transformers reads beside it.

        Args:
            folder: folder to create.
            dtype: torch dtype of the weights; None means float32. For int8, see `model/quantization.py`.
            settings: decoding settings to store as the model's defaults.

        Raises:
            CheckpointError: if the folder is the model's own.
            DDCapError: if a `dtype` is asked of ONNX graphs.
            RecipeError: if a decoding setting is unknown or wrong.
        """
        config = replace(self.model.config, decoding=self.settings(**settings))
        save_model(self.model, self.tokenizer, self.confidence, Path(folder), config, dtype)

    save = save_pretrained

    def push_to_hub(self, target: str | Path, *, private: bool | None = None, **card: Any) -> str:
        """Write model, tokenizer and model card to the Hub or a folder. Returns the URL or path.

        Args:
            target: a Hub id ("owner/name"), or a folder: a `Path`, or a path that exists or starts with ".",
                "/", "~" or a drive ("C:").
            private: whether a new Hub repository is private.
            card: `evaluation`, `licence` and `data`, see `publishing.write_card`.

        Raises:
            CheckpointError: if the upload fails.
            DDCapError: if the model runs as ONNX graphs.
        """
        return push(self.model, self.tokenizer, self.confidence, target, card, private=private)

    def concepts(self, image: ImageSource) -> list[Concept]:
        """The concepts of `seen`."""
        return self.seen(image)[0]

    def seen(self, image: ImageSource) -> tuple[list[Concept], PersonsSeen | None]:
        """The concepts that the model sees in an image, surest first; and persons, if it has a detector.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the model sees no concepts.
        """
        if self.model.vocabulary is None:
            raise DDCapError("this model sees no concepts; use one with a tagger, such as the default")
        return what_is_seen(self.features([image]), self.model.vocabulary)

    def features(self, images: Sequence[ImageSource]) -> ImageFeatures:
        """Memory (I, P, C) and summary (I, S) of images, on the model's device.

        Raises:
            ImageError: for the first image that cannot be read.
        """
        with self.computing():
            features: ImageFeatures = self.model.encode(np.stack([self.pixels(image) for image in images]))
        return features

    def pixels(self, image: ImageSource, unnamed: str = "image") -> np.ndarray:
        """Pixels (3, H, W) of one image, preprocessed for the encoder; see `data.images.load_image`."""
        return self.model.preprocessing(load_image(image, unnamed=unnamed))

    def computing(self) -> AbstractContextManager[Any]:
        """The context of a forward pass: autocast if the precision is bfloat16."""
        if self.runtime == "onnx":
            return nullcontext()
        return computing(self.model.device, bfloat16=self.precision == "bfloat16")

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        seed: int = 0,
        batch_size: int | None = None,
        concepts: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> list[Caption]:
        """Write one caption per image; for several see `caption_each`.

            captioner("photo.jpg", include=["red bicycle"], ban=["man"], max_chars=80)

        Args:
            images: an image, or several: paths, PIL images, bytes of image files, files opened with mode
                "rb", arrays of uint8 (height, width, 3); a list of them, or an array (I, height, width, 3).
            seed: seed for sampling; the same seed and batch give the same captions.
            batch_size: images to process at a time; None takes the fastest.
            concepts: concepts to use instead of those seen: "cat, window"; or changes: "+cat, -dog".
            settings: decoding settings to change (see `DecodingSettings`, `generation_config.ALIASES`), such
                as steps, guidance, length, temperature; or `preset`, "fast" or "best". Also the constraints
                on every caption (see `decoding.constraints.Constraints`): include, prefix, suffix, ban,
                min_words, max_chars; or `neutral` (True, or the path of a word list).

        Raises:
            ImageError: for the first image that cannot be read; `caption_each` continues instead.
            RecipeError: if a decoding setting is unknown or wrong.
            DDCapError: if an argument is wrong, or no caption can satisfy the constraints.
        """
        settings = own_names(settings)
        for name in ("num", "lengths"):
            value = settings.pop(name, None)
            if value is not None and (name == "lengths" or as_whole(name, value, 1) > 1):
                several = f"caption_each(images, {name}={value}) and the captions of its results"
                raise DDCapError(f"{name}={value}: a call returns one caption per image; use {several}")
        captions = []
        results = self.caption_each(images, seed=seed, batch_size=batch_size, concepts=concepts, **settings)
        for result in results:
            if result.error is not None:
                raise ImageError(result.error)
            captions.append(result.captions[0])
        return captions

    def caption_each(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        num: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        concepts: str | Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
        **settings: Any,
    ) -> Iterator[ImageResult]:
        """Caption many images: one result each, in order, with an error for an image that cannot be read.

        Args:
            images: as in `__call__`, or from any iterable.
            num: captions per image. With best-first inference each caption differs in content from those
                before it. With other decoders or a temperature, each has another length or is another sample.
                Where the constraints leave fewer different captions, there are fewer.
            seed: seed for sampling.
            batch_size: images to process at a time; None takes the fastest.
            concepts: see `__call__`.
            lengths: write one caption of exactly each of these lengths, in this order.
            settings: see `__call__`.

        Raises:
            RecipeError: if a decoding setting is unknown or wrong.
            DDCapError: if an argument is wrong, or no caption can satisfy the constraints.
        """
        settings = own_names(settings)
        num = settings.pop("num", num)
        constraints, settings = self._constraints(settings)
        asked = CaptionRequest(
            self.settings(**settings),
            as_whole("num", num, 1),
            constraints,
            None if lengths is None else tuple(as_wholes("lengths", lengths, 1)),
            tuple(self._edits(concepts, constraints)),
            self.confidence,
            self._watch,
        ).checked(self.model.config, self.word_vocabulary)
        yield from caption_stream(
            asked,
            self.model,
            images,
            self.pixels,
            self.computing,
            self.word_vocabulary,
            batch_size=batch_size,
            seed=seed,
        )

    def score(self, image: ImageSource, captions: str | Sequence[str]) -> list[CaptionEvidence]:
        """Score how well an image supports given captions and each of their words.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if there is no caption, one is empty, too long or cannot be spelled, or the model is
                autoregressive.
        """
        given = self._captions(captions)
        features = self.features([image])
        with self.computing():
            return caption_evidence(self.model, features, [given], self.tokenizer)[0]

    def log_likelihood(
        self, image: ImageSource, captions: str | Sequence[str], **settings: Any
    ) -> list[float]:
        """Log-probability that best-first inference writes each caption, see `evidence.sampler_evidence`.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: see `score`.
        """
        given = self._captions(captions)
        features, asked = self.features([image]), self.settings(**settings)
        with self.computing():
            return sampler_evidence(self.model, features, given, asked, self.tokenizer).tolist()

    def rewrite(
        self,
        image: ImageSource,
        caption: str,
        *,
        keep: Sequence[str] = (),
        seed: int = 0,
        concepts: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Rewriting:
        """Replace the words of a caption that an image does not support.

        Args:
            image: see `__call__`.
            caption: caption to rewrite.
            keep: words of the caption to keep.
            seed: seed for sampling.
            concepts: see `__call__`.
            settings: see `infill`.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the caption is empty, too long or cannot be spelled, does not have the words to
                keep, or these are banned; or if the model is autoregressive.
        """
        constraints, settings = self._constraints(settings)
        (caption,) = self._captions(as_text("caption", caption))
        kept = as_texts("keep", keep)
        constraints.check_kept(kept, caption)
        seen = features = self.features([image])
        for edit in self._edits(concepts, constraints):
            features = features.edited(edit)
        decoding = replace(self.settings(**settings), exact_length=False)
        words = None if constraints.is_empty else (constraints, self.word_vocabulary)
        generator = np.random.default_rng(as_whole("seed", seed, 0))
        with self.computing():
            return rewrite(
                self.model,
                features,
                caption,
                decoding,
                self.tokenizer,
                keep=kept,
                words=words,
                generator=generator,
                confident=Confident.of(self.confidence, seen, self.model),
            )

    @cached_property
    def word_vocabulary(self) -> Vocabulary:
        """The text of each token, for constraints on words."""
        return Vocabulary(self.tokenizer)

    def _edits(self, concepts: str | Sequence[str] | None, constraints: Constraints) -> list[ConceptEdits]:
        """Changes to the concepts: the given ones, and those that follow from the constraints."""
        vocabulary = self.model.vocabulary
        edits = [] if concepts is None else [ConceptEdits.parse(concepts, vocabulary)]
        return edits + constraints.edits(vocabulary)

    def _constraints(self, settings: dict[str, Any]) -> tuple[Constraints, dict[str, Any]]:
        """The constraints among keyword arguments, which this model can spell, and the other arguments."""
        constraints, others = Constraints.take(settings)
        constraints.check_spelling(self.tokenizer)
        return constraints, others

    def _captions(self, captions: Any) -> list[str]:
        """Given captions, at least one, all of which this model can spell."""
        given = [straight(caption) for caption in as_texts("captions", captions)]
        if not given:
            raise DDCapError("captions: is empty; give at least one caption")
        for caption in given:
            self.tokenizer.check_spelling(f"caption {caption!r}", caption)
        return given

    def infill(
        self,
        image: ImageSource,
        template: str,
        *,
        seed: int = 0,
        concepts: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Caption:
        """Fill the blanks of a caption.

        Args:
            image: see `__call__`.
            template: words and blanks: `___` for one to four tokens, more where needed; `[3]` for three.
            seed: seed for sampling.
            concepts: see `__call__`.
            settings: see `__call__`; `length` is the length of the filled caption.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the template has no blank, is too long, or does not fit the length.
            RecipeError: if a decoding setting is unknown or wrong.
        """
        constraints, settings = self._constraints(settings)
        if constraints.wanted:
            name, text = constraints.wanted[0]
            raise DDCapError(f"{name} {text!r}: does not apply to infilling; write it in the template")
        if settings.get("candidates") not in (None, 1):
            raise RecipeError(
                f"candidates={settings['candidates']}: infilling chooses among the widths of the blanks; "
                "remove candidates"
            )
        decoding = self.settings(**settings)
        if settings.get("length") is None:  # the model's own length applies without a template only
            decoding = replace(decoding, exact_length=False)
        parsed = parse_template(straight(as_text("template", template)), self.tokenizer)
        seen = features = self.features([image])
        for edit in self._edits(concepts, constraints):
            features = features.edited(edit)
        generator = np.random.default_rng(as_whole("seed", seed, 0))
        words = None if constraints.is_empty else (constraints, self.word_vocabulary)
        confident, own = Confident.of(self.confidence, seen, self.model), self.tokenizer
        with self.computing():
            filled = infill(self.model, features, parsed, decoding, own.end_id, generator, words, own)
        return finish([filled], own, confident=confident)[0][0]
