"""The main class: load a model once, then caption, infill, score and rewrite."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.arrays import Array, to_host
from ddcap.data.concepts import NO_CONCEPT, ConceptEdits
from ddcap.data.images import ImageSource, load_image
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.caption import Caption, Concept, ImageResult
from ddcap.decoding.confidence import Confidence
from ddcap.decoding.constraints import Constraints, Vocabulary
from ddcap.decoding.evidence import CaptionEvidence, caption_evidence, sampler_evidence
from ddcap.decoding.finishing import Confident, finish
from ddcap.decoding.infilling import infill, parse_template
from ddcap.decoding.request import CaptionRequest, PixelsOrError, read_each
from ddcap.decoding.rewriting import Rewriting, rewrite
from ddcap.errors import CheckpointError, DDCapError, ImageError, RecipeError
from ddcap.files import is_folder_name
from ddcap.machine import ahead, computes_bfloat16, computing
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel
from ddcap.model.runtimes import Precision, Runtime, check_choice, load_runtime
from ddcap.publishing import DEFAULT_MODEL, find_model, upload, write_card
from ddcap.settings import DecodingSettings, dump_settings, parse_settings, preset_settings


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
            precision = "bfloat16" if computes_bfloat16(str(model.device)) else "float32"
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
    ) -> Captioner:
        """Load a model.

        Args:
            model: "default" (part of the package), a folder, or a Hub id.
            device: device to run on, for example "cpu" or "cuda".
            precision: "float32"; "bfloat16" (PyTorch only); "int8" (ONNX only); "auto" takes the fastest.
            runtime: "onnx" needs no PyTorch, runs on the CPU, and needs a folder with ONNX graphs, such as
                the default or the output of `ddcap export --onnx`; "torch" runs every model on any device;
                "auto" takes "onnx" if it can.

        Raises:
            CheckpointError: if the model does not exist or is damaged.
            DDCapError: if the device, precision or runtime is not available.
            MissingExtraError: if the model needs PyTorch and PyTorch is not installed.
        """
        folder = find_model(model)
        loaded = load_runtime(folder, str(model), device, precision, runtime)
        return cls(loaded, loaded.tokenizer, precision, Confidence.load(folder))

    @property
    def decoding(self) -> DecodingSettings:
        """The model's default decoding settings."""
        return self.model.config.decoding

    def settings(self, **changes: Any) -> DecodingSettings:
        """The model's decoding settings with `changes`. A change that is None has no effect.

        A given `length` is exact, even if the model's own settings choose among candidates of several
        lengths. With `candidates`, it is the middle of their lengths. `preset` is "fast" or "best" (see
        `settings.PRESETS`); other changes override it.

        Raises:
            RecipeError: if a setting is unknown or wrong.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        own = dump_settings(self.decoding)
        if "preset" in given:
            own.update(preset_settings(given.pop("preset"), self.model.config.model.kind))
        if given.get("length", "predicted") != "predicted" and given.get("candidates", 1) == 1:
            own.update(exact_length=True, candidates=1)
        elif "length" in given or given.get("candidates", 1) != 1:
            own.update(exact_length=False)
        merged: DecodingSettings = parse_settings(DecodingSettings, {**own, **given}, "decoding settings")
        try:
            merged.check_model(self.model.config.model, sees_concepts=self.model.config.concepts > 0)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        return merged

    def save(self, folder: str | Path, dtype: Any = None, **settings: Any) -> None:
        """Write the model and its tokenizer into `folder`.

        Args:
            folder: folder to create.
            dtype: torch dtype of the weights; None means float32. For int8, see `model/quantization.py`.
            settings: decoding settings to store as the model's defaults.

        Raises:
            DDCapError: if the model does not run with PyTorch.
        """
        self._need_torch("saved")
        config = replace(self.model.config, decoding=self.settings(**settings))
        import torch

        self.model.save_pretrained(folder, torch.float32 if dtype is None else dtype, config)
        self.tokenizer.save(folder)
        if self.confidence is not None:
            self.confidence.save(Path(folder))

    def push_to_hub(self, target: str | Path, *, private: bool | None = None, **card: Any) -> str:
        """Write model, tokenizer and model card to the Hub or a folder. Returns the URL or path.

        Args:
            target: a Hub id ("owner/name"), or a folder: a `Path`, or a path that exists or starts with ".",
                "/", "~" or a drive ("C:").
            private: whether a new Hub repository is private.
            card: `evaluation`, `licence` and `data`, see `publishing.write_card`.

        Raises:
            CheckpointError: if the upload fails.
        """
        self._need_torch("pushed")
        if is_folder_name(target):
            return str(self._save_with_card(Path(target).expanduser(), None, card))
        with tempfile.TemporaryDirectory() as temporary:
            folder = self._save_with_card(Path(temporary), str(target), card)
            return upload(folder, str(target), private=private)

    def _save_with_card(self, folder: Path, name: str | None, card: dict[str, Any]) -> Path:
        import torch

        self.save(folder, torch.float16)
        parameters = sum(value.numel() for value in self.model.stored_state().values())
        write_card(folder, self.model.config, parameters=parameters, name=name, **card)
        return folder

    def _need_torch(self, what: str) -> None:
        if self.runtime != "torch":
            raise DDCapError(f"ONNX graphs cannot be {what}; load the model with runtime='torch'")

    def concepts(self, image: ImageSource) -> list[Concept]:
        """The concepts that the model sees in an image, the most certain first.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the model sees no concepts.
        """
        vocabulary = self.model.vocabulary
        if vocabulary is None:
            raise DDCapError("this model sees no concepts; use one with a tagger, such as the default")
        seen = self.features([image]).concepts
        assert seen is not None
        pairs = zip(to_host(seen.ids)[0].tolist(), to_host(seen.confidences)[0].tolist(), strict=True)
        return [Concept(vocabulary.words[number], share) for number, share in pairs if number != NO_CONCEPT]

    def features(self, images: Sequence[ImageSource]) -> ImageFeatures:
        """Memory (I, P, C) and summary (I, S) of images, on the model's device.

        Raises:
            ImageError: for the first image that cannot be read.
        """
        with self.computing():
            features: ImageFeatures = self.model.encode(np.stack([self.pixels(image) for image in images]))
        return features

    def pixels(self, image: ImageSource) -> np.ndarray:
        """Pixels (3, H, W) of one image, preprocessed for the encoder."""
        return self.model.preprocessing(load_image(image))

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
        """Write one caption per image.

            captioner("photo.jpg", include=["red bicycle"], ban=["man"], max_chars=80)

        Args:
            images: a path or PIL image, or a list of them.
            seed: seed for sampling; the same seed and batch give the same captions.
            batch_size: images to process at a time; None takes the fastest.
            concepts: concepts to use instead of those seen: "cat, window"; or changes: "+cat, -dog".
            settings: decoding settings to change (see `DecodingSettings`): method, steps, guidance, length,
                temperature, ...; or `preset`, "fast" or "best". Also the constraints on every caption (see
                `decoding.constraints.Constraints`): include, prefix, suffix, ban, min_words, max_chars; or
                `neutral` (True, or the path of a word list).

        Raises:
            ImageError: for the first image that cannot be read; `caption_each` continues instead.
            RecipeError: if a decoding setting is unknown or wrong.
            DDCapError: if no caption can satisfy the constraints.
        """
        many: Sequence[ImageSource] = [images] if isinstance(images, ImageSource) else images
        captions = []
        results = self.caption_each(many, seed=seed, batch_size=batch_size, concepts=concepts, **settings)
        for result in results:
            if result.error is not None:
                raise ImageError(result.error)
            captions.append(result.captions[0])
        return captions

    def caption_each(
        self,
        images: Iterable[ImageSource],
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
            images: paths or PIL images, from any iterable.
            num: captions per image. With best-first inference each caption differs in content from those
                before it. With other decoders or a temperature, each has another length or is another sample.
            seed: seed for sampling.
            batch_size: images to process at a time; None takes the fastest.
            concepts: see `__call__`.
            lengths: write one caption of exactly each of these lengths, in this order.
            settings: see `__call__`.
        """
        constraints, settings = Constraints.take(settings)
        batch_size = _FASTEST_BATCH[self.runtime] if batch_size is None else batch_size
        if batch_size < 1:
            raise DDCapError(f"batch_size={batch_size}: process at least 1 image at a time")
        asked = CaptionRequest(
            self.settings(**settings),
            num,
            constraints,
            None if lengths is None else tuple(lengths),
            tuple(self._edits(concepts, constraints)),
            self.confidence,
            self._watch,
        ).checked(self.model.config, self.word_vocabulary)
        coming = iter(images)  # a few at a time, even of a million names
        parts = iter(lambda: list(itertools.islice(coming, batch_size)), [])
        is_bulk = self.runtime == "onnx" and not (isinstance(images, Sized) and len(images) <= batch_size)
        model = self.model.for_bulk() if is_bulk else self.model

        def caption(numbered: _Numbered, pixels: list[PixelsOrError]) -> list[ImageResult]:
            number, part = numbered
            generator = np.random.default_rng([seed, number])  # independent of the thread and the order
            with self.computing():
                return asked.results(model, part, pixels, self.word_vocabulary, generator)

        if is_bulk:  # each core computes its own batches
            whole = ahead(
                lambda numbered: caption(numbered, read_each(numbered[1], self.pixels)), enumerate(parts)
            )
            for _, results in whole:
                yield from results
            return
        for numbered, pixels in ahead(
            lambda one: read_each(one[1], self.pixels), enumerate(parts), workers=1
        ):
            yield from caption(numbered, pixels)

    def score(self, image: ImageSource, captions: str | Sequence[str]) -> list[CaptionEvidence]:
        """Score how well an image supports given captions and each of their words.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if a caption is empty or too long, or the model is autoregressive.
        """
        texts = [captions] if isinstance(captions, str) else list(captions)
        features = self.features([image])
        with self.computing():
            return caption_evidence(self.model, features, [texts], self.tokenizer)[0]

    def log_likelihood(
        self, image: ImageSource, captions: str | Sequence[str], **settings: Any
    ) -> list[float]:
        """Log-probability that best-first inference writes each caption, see `evidence.sampler_evidence`.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: see `score`.
        """
        texts = [captions] if isinstance(captions, str) else list(captions)
        features, asked = self.features([image]), self.settings(**settings)
        with self.computing():
            return sampler_evidence(self.model, features, texts, asked, self.tokenizer).tolist()

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
            image: path or PIL image.
            caption: caption to rewrite.
            keep: words to keep.
            seed: seed for sampling.
            concepts: see `__call__`.
            settings: see `infill`.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the caption is empty or too long, or the model is autoregressive.
        """
        constraints, settings = Constraints.take(settings)
        seen = features = self.features([image])
        for edit in self._edits(concepts, constraints):
            features = features.edited(edit)
        decoding = replace(self.settings(**settings), exact_length=False)
        words = None if constraints.is_empty else (constraints, self.word_vocabulary)
        generator = np.random.default_rng(seed)
        with self.computing():
            return rewrite(
                self.model,
                features,
                caption,
                decoding,
                self.tokenizer,
                keep=keep,
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
            image: path or PIL image.
            template: words and blanks: `___` for any number of tokens, `[3]` for three.
            seed: seed for sampling.
            concepts: see `__call__`.
            settings: see `__call__`; `length` is the length of the filled caption.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the template has no blank, is too long, or does not fit the length.
            RecipeError: if a decoding setting is unknown or wrong.
        """
        constraints, settings = Constraints.take(settings)
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
        parsed = parse_template(template, self.tokenizer)
        seen = features = self.features([image])
        for edit in self._edits(concepts, constraints):
            features = features.edited(edit)
        generator = np.random.default_rng(seed)
        words = None if constraints.is_empty else (constraints, self.word_vocabulary)
        confident, own = Confident.of(self.confidence, seen, self.model), self.tokenizer
        with self.computing():
            filled = infill(self.model, features, parsed, decoding, own.end_id, generator, words, own)
        return finish([filled], own, confident=confident)[0][0]


_Numbered = tuple[int, Sequence[ImageSource]]
_FASTEST_BATCH = {"onnx": 4, "torch": 16}
