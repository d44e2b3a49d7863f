"""The one way from features and drafts to captions: a sampler, its state, and the loop over a scheduler.

Whole captions, constrained ones and captions with blanks are all drafts: given tokens, and MASK where words
are wanted. What decodes them is a scheduler (`decoding/schedulers/`); what ranks them and makes captions of
them is `decoding/finishing.py`.

Shapes: I images, B captions (B = I * K, grouped by image), L positions, S steps, V words (the id V is MASK).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, cast

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like, to_host
from ddcap.decoding.finishing import Candidates, Judge, judged
from ddcap.decoding.judging import ModelJudge, UnlikelyWords
from ddcap.decoding.predictor import ConceptEvidence, Predictor
from ddcap.decoding.pruning import Pruning
from ddcap.decoding.schedulers.best_first import BestFirstScheduler
from ddcap.decoding.schedulers.blocks import BlockScheduler
from ddcap.decoding.schedulers.interface import AllowedTokens, Scheduler, SchedulerOutput
from ddcap.decoding.trace import DecodingResult, evidence, until
from ddcap.errors import DDCapError
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel, DenoisingModel, DenoisingSteps
from ddcap.settings import DecodingSettings


@dataclass(frozen=True)
class Drafts:
    """Captions before decoding.

    Attributes:
        tokens: (B, L) given tokens, MASK where words are wanted; padding past the lengths is any word.
        lengths: (B,) tokens of each caption, end token included.
        per_image: K.
        may_end: whether a wanted word may be the end token; words given behind it would be lost.
        allowed: of each caption, which tokens may stand where; None allows all.
        wanted: how many of an image's captions are wanted, the best of them; None wants each for itself.
    """

    tokens: Array
    lengths: Array
    per_image: int = 1
    may_end: bool = True
    allowed: Sequence[AllowedTokens] | None = None
    wanted: int | None = None

    def select(self, rows: np.ndarray, per_image: int) -> Drafts:
        """The drafts `rows` (I * per_image,), without the padding that only others need."""
        places = like(rows, self.tokens)
        lengths, allowed = self.lengths[places], self.allowed
        return replace(
            self,
            tokens=self.tokens[places, : int(lengths.max())],
            lengths=lengths,
            per_image=per_image,
            allowed=None if allowed is None else [allowed[row] for row in rows.tolist()],
        )


class DecodingState:
    """Captions on their way, with the record of their steps.

    Args:
        tokens: (B, L).
        lengths: (B,).
    """

    def __init__(self, tokens: Array, lengths: Array) -> None:
        xp = array_namespace(tokens)
        self.tokens, self.lengths = tokens, lengths
        self.confidences = xp.ones(tuple(tokens.shape), dtype=xp.float32, device=device(tokens))
        self._history = [tokens]
        self._step_confidences: list[Array] = []
        self._timesteps: list[np.ndarray] = []

    def advance(self, places: Array, found: SchedulerOutput, timesteps: np.ndarray) -> None:
        """Take over what a step made of captions `places` (B',), at t `timesteps` (B,)."""
        xp, after = array_namespace(self.tokens), found.prev_sample
        longest = after.shape[1]
        self._timesteps.append(timesteps)
        if after.shape == self.tokens.shape:  # all captions: nothing to gather and to spread
            is_new = after != self.tokens
            self.tokens, self.confidences = after, xp.where(is_new, found.probability, self.confidences)
            self._history.append(after)
            self._step_confidences.append(found.probability)
            return
        tokens, confidences = xp.asarray(self.tokens, copy=True), xp.asarray(self.confidences, copy=True)
        is_new = after != tokens[places, :longest]
        tokens[places, :longest] = after
        confidences[places, :longest] = xp.where(is_new, found.probability, confidences[places, :longest])
        everywhere = xp.zeros_like(confidences)
        everywhere[places, :longest] = found.probability
        self.tokens, self.confidences = tokens, confidences
        self._history.append(tokens)
        self._step_confidences.append(everywhere)

    def predicted(self, places: Array, found: SchedulerOutput) -> tuple[Array, Array]:
        """Tokens and confidences (B, L) if all MASKs became what the last step predicted.

        Args:
            places: (B',) captions of the step.
            found: what came of it.
        """
        xp, guess = array_namespace(self.tokens), found.pred_original_sample
        tokens, confidences = xp.asarray(self.tokens, copy=True), xp.asarray(self.confidences, copy=True)
        assert guess is not None  # settings prune with such schedulers only
        longest = guess.shape[1]
        is_open = guess != tokens[places, :longest]
        tokens[places, :longest] = guess
        confidences[places, :longest] = xp.where(is_open, found.probability, confidences[places, :longest])
        return tokens, confidences

    def result(self) -> DecodingResult:
        """The record, after at least one step."""
        timesteps = like(np.stack(self._timesteps), self.tokens)
        return DecodingResult.of_steps(
            self.lengths, self.confidences, self._history, self._step_confidences, timesteps
        )


def denoise(
    predictor: Predictor,
    drafts: Drafts,
    scheduler: Scheduler,
    steps: int | None = None,
    generator: np.random.Generator | None = None,
    pruning: Pruning | None = None,
) -> DecodingResult:
    """Run a scheduler: predict, step, repeat.

    Nothing is computed that cannot change a caption: captions that are done are left out, as far as every
    image has as many of them left, and words are predicted only where the scheduler asks for them.

    Args:
        predictor: for these captions.
        drafts: to be filled; what is allowed in them is told of what is committed.
        scheduler: of the steps.
        steps: asked-for number of steps; None leaves it to the scheduler.
        generator: source of randomness, of schedulers that draw.
        pruning: who of the candidates goes on; None for all. Captions that it drops keep their MASKs. It
            needs a scheduler that says what is predicted in place of each MASK.
    """
    state = DecodingState(drafts.tokens, drafts.lengths)
    scheduler.set_timesteps(steps, drafts.tokens, drafts.lengths)
    sizes, part, allowed = to_host(drafts.lengths), predictor, drafts.allowed
    rows = np.arange(len(sizes))
    places = like(rows, drafts.tokens)
    while not scheduler.is_done:
        is_decoded = None if pruning is None else pruning.is_decoded
        if is_decoded is not None and not (scheduler.running & is_decoded).any():
            break
        kept = running_captions(scheduler.running, drafts.per_image, is_decoded)
        if len(kept) < len(rows):
            rows, places = kept, like(kept, drafts.tokens)
            part = predictor.select(places)
        timesteps = scheduler.timestep()
        now = state.tokens[places, : int(sizes[rows].max())]  # (B', L')
        output = part.output(
            now,
            like(timesteps[rows], now),
            scheduler.positions(now, rows),
            with_logits=scheduler.reads_logits or allowed is not None,
        )
        found = scheduler.step(
            output,
            timesteps,
            now,
            rows,
            generator=generator,
            allowed=None if allowed is None else [allowed[row] for row in rows.tolist()],
        )
        state.advance(places, found, timesteps)
        if pruning is not None:
            pruning.step(partial(state.predicted, places, found))
    return state.result()


def running_captions(
    is_running: np.ndarray, captions_per_image: int, is_decoded: np.ndarray | None = None
) -> np.ndarray:
    """(B',) captions to go on with: those that are running, and as many of each image as of the others.

    Args:
        is_running: (B,) grouped by image.
        captions_per_image: B is a multiple of it.
        is_decoded: (B,) False for captions that are dropped; None for none.
    """
    decoded = np.ones_like(is_running) if is_decoded is None else is_decoded
    order = np.where(decoded, np.where(is_running, 0, 1), 2).reshape(-1, captions_per_image)
    most = max(1, int((order == 0).sum(axis=1).max()))
    kept = np.sort(np.argsort(order, axis=1, kind="stable")[:, :most], axis=1)  # (I, K')
    return (kept + np.arange(len(order))[:, None] * captions_per_image).reshape(-1)


class Editor(Protocol):
    """Looks at decoded captions and says which of their words to write again."""

    def hide(self, result: DecodingResult, rounds: int) -> Array | None:
        """(B, L) True at positions to hide and fill again; None ends the editing.

        Args:
            result: the captions so far.
            rounds: how often they were edited before.
        """


class Sampler:
    """Fills drafts of captions of I images with a model, as settings say.

    Args:
        model: in evaluation mode.
        features: of I images, where the model computes.
        settings: decoder, steps, guidance, concepts, ranking of candidates.
        end_id: the tokenizer's end token.
        generator: source of randomness; None is enough for a deterministic decoder.
        judge: a second opinion on candidates, see `finishing.judged`; None takes the model's own, if the
            settings ask for it.
        editor: says what to write again; a rewritten caption is kept where it scores higher. None takes the
            model's judge, if the settings ask for edits.
        watch: is told the captions (B, L) before each step, MASK where there is no word yet.
    """

    def __init__(
        self,
        model: CaptioningModel,
        features: ImageFeatures,
        settings: DecodingSettings,
        end_id: int,
        *,
        generator: np.random.Generator | None = None,
        judge: Judge | None = None,
        editor: Editor | None = None,
        watch: Callable[[Array], None] | None = None,
    ) -> None:
        self.model, self.features, self.settings, self.end_id = model, features, settings, end_id
        own = ModelJudge(model, end_id) if settings.judge_weight or settings.edit_rounds else None
        if editor is None and own is not None and settings.edit_rounds:
            editor = UnlikelyWords(own, features, settings.edit_rounds)
        self.generator, self.judge, self.editor, self.watch = generator, judge or own, editor, watch
        self._concepts: dict[int, ConceptEvidence | None] = {}

    @cached_property
    def steps(self) -> DenoisingSteps:
        """The model's denoising steps for these images, with the image-free branch if guidance needs it."""
        model = cast(DenoisingModel, self.model)
        return model.denoising_steps(self.features, with_image_free=self.settings.guidance != 1)

    def concepts(self, per_image: int) -> ConceptEvidence | None:
        """Build the images' concepts as evidence for K captions of each; None if no setting asks."""
        if per_image not in self._concepts:
            self._concepts[per_image] = concept_evidence(self.model, self.features, self.settings, per_image)
        return self._concepts[per_image]

    def predictor(self, drafts: Drafts, bias: np.ndarray | None = None) -> Predictor:
        """The model's prediction for drafts; `bias` (I, V) is added to the logits of an image's captions."""
        return Predictor(
            self.steps,
            drafts.lengths,
            self.settings.guidance,
            self.concepts(drafts.per_image),
            barred=None if drafts.may_end else self.end_id,
            bias=None if bias is None else self.model.as_array(bias.repeat(drafts.per_image, axis=0)),
            watch=self.watch,
        )

    def fill(
        self, drafts: Drafts, bias: np.ndarray | None = None, pruning: Pruning | None = None
    ) -> DecodingResult:
        """Fill every MASK of the drafts, by the decoder that the settings name; given words stay.

        Args:
            drafts: to be filled.
            bias: (I, V) is added to the logits of an image's captions.
            pruning: who of the candidates goes on; the result is without those that are decoded no further.

        Raises:
            DDCapError: if the decoder cannot keep to the allowed tokens, or no token is allowed.
        """
        self._check(drafts)
        if self.model.config.model.kind == "autoregressive":
            return self._left_to_right(drafts)
        result = self._denoised(drafts, bias, pruning)
        if pruning is not None and pruning.saves:
            result = result.select(like(pruning.rows, result.tokens))
            drafts = drafts.select(pruning.rows, pruning.survivors)
        return result if self.editor is None else self._edited(self.editor, drafts, result, bias)

    def scores(self, result: DecodingResult, per_image: int) -> Array:
        """(B,) by which an image's candidates are compared: likelihoods by length, and concepts named."""
        penalty = self.settings.length_penalty
        weight = self.settings.judge_weight or 0.5  # of a judge that the settings do not know
        scores = judged(result.evidence(penalty), result, self.features, self.judge, penalty, weight)
        return self._with_concepts(scores, result.tokens, per_image)

    def _with_concepts(self, scores: Array, tokens: Array, per_image: int) -> Array:
        """(B,) scores and what tokens (B, L) say of the concepts seen."""
        concepts = self.concepts(per_image)
        if concepts is None:
            return scores
        return scores + self.settings.concept_weight * concepts.said(until(tokens, self.end_id))

    def candidates(self, drafts: Drafts, bias: np.ndarray | None = None) -> Candidates:
        """Fill drafts and score what came of them; one candidate of an image needs no score.

        Candidates that are pruned are left out; where too many are wanted for that, they rank behind.
        """
        pruning = self._pruning(drafts)
        result = self.fill(drafts, bias, pruning)
        per_image, survives = drafts.per_image, None
        if pruning is not None and pruning.saves:
            per_image = pruning.survivors
        elif pruning is not None:
            survives = pruning.survives
        scores = self.scores(result, per_image) if per_image > 1 else None
        return Candidates(result, per_image, scores, survives)

    def _check(self, drafts: Drafts) -> None:
        if drafts.allowed is None:
            return
        if (self.model.config.model.kind, self.settings.method) != ("diffusion", "best_first"):
            raise DDCapError(
                "constraints on words need a diffusion model and method=best_first; use these, or remove them"
            )
        if self.settings.order != "probability":
            raise DDCapError(
                f"order={self.settings.order}: cannot be combined with constraints on words; set "
                "order=probability"
            )

    def _pruning(self, drafts: Drafts) -> Pruning | None:
        """Prune the drafts, if the settings say so and the best of several are wanted; else None."""
        plan = self.settings.prune
        if not plan or drafts.wanted is None or drafts.per_image == 1:
            return None

        def score(tokens: Array, confidences: Array) -> Array:
            found = evidence(confidences, drafts.lengths, self.settings.length_penalty)
            return self._with_concepts(found, tokens, drafts.per_image)

        return Pruning(plan, len(drafts.lengths), drafts.per_image, score, drafts.wanted)

    def _denoised(
        self, drafts: Drafts, bias: np.ndarray | None, pruning: Pruning | None = None
    ) -> DecodingResult:
        settings = self.settings
        if drafts.allowed is not None:  # where a token is refused, another position may be the surest
            settings = replace(settings, focus=0)
        scheduler = scheduler_of(self.model, settings)
        predictor = self.predictor(drafts, bias)
        return denoise(predictor, drafts, scheduler, self.settings.steps, self.generator, pruning)

    def _edited(
        self, editor: Editor, drafts: Drafts, result: DecodingResult, bias: np.ndarray | None
    ) -> DecodingResult:
        """Hide words and fill their positions again, as long as the editor wants to.

        Each caption keeps the higher-scoring of its two versions. Words given in the drafts are never hidden.
        """
        xp = array_namespace(result.tokens)
        was_wanted, rounds = drafts.tokens == self.model.mask_id, 0
        while (hidden := editor.hide(result, rounds)) is not None:
            hidden = hidden & was_wanted
            again = replace(drafts, tokens=xp.where(hidden, self.model.mask_id, result.tokens))
            if drafts.allowed is not None:
                for allowed, row in zip(drafts.allowed, to_host(hidden), strict=True):
                    allowed.hide(np.flatnonzero(row).tolist())
            rewritten = result.continued(self._denoised(again, bias), hidden)
            better = self.scores(rewritten, drafts.per_image) > self.scores(result, drafts.per_image)
            result = result.where(better, rewritten)
            rounds += 1
        return result

    def _left_to_right(self, drafts: Drafts) -> DecodingResult:
        from ddcap.decoding.left_to_right import decode_left_to_right

        runtime: Any = self.model  # it needs what only a PyTorch model has
        return decode_left_to_right(
            runtime,
            self.features,
            drafts.tokens,
            drafts.lengths,
            self.end_id,
            may_end=drafts.may_end,
            beams=self.settings.beams,
            length_penalty=self.settings.length_penalty,
            temperature=self.settings.temperature,
            generator=self.generator,
            concepts=self.concepts(drafts.per_image),
            concept_weight=self.settings.concept_weight,
        )


def scheduler_of(model: CaptioningModel, settings: DecodingSettings) -> Scheduler:
    """The scheduler that settings name.

    Raises:
        DDCapError: if the model's runtime has not what it needs.
    """
    if settings.method == "ancestral":
        diffusion = getattr(model, "schedule", None)
        if diffusion is None:
            raise DDCapError(
                "method=ancestral: ONNX graphs decode best-first only; load the model with PyTorch "
                "(--runtime torch, or runtime='torch')"
            )
        from ddcap.decoding.schedulers.ancestral import AncestralScheduler

        # the reverse process is a sampler; 0 means "not set" here
        return AncestralScheduler(diffusion, settings.temperature or 1.0)
    shared: dict[str, Any] = {
        "temperature": settings.temperature,
        "distinct": settings.distinct,
        "order": settings.order,
        "focus": settings.focus,
    }
    steps, mask_id = model.config.diffusion.steps, model.mask_id
    if settings.block is not None:
        return BlockScheduler(steps, mask_id, settings.block, **shared)
    return BestFirstScheduler(steps, mask_id, schedule=settings.schedule, **shared)


def concept_evidence(
    model: CaptioningModel, features: ImageFeatures, settings: DecodingSettings, captions_per_image: int
) -> ConceptEvidence | None:
    """Build the concepts of images as evidence; None if no setting asks, or the model sees none."""
    asked = settings.concept_bonus or settings.repeat_penalty or settings.concept_weight or settings.absence
    asked = asked or settings.persons
    if not asked or features.concepts is None or model.spelling is None:
        return None
    evidence = ConceptEvidence.of(
        features.concepts,
        model.spelling,
        model.mask_id,
        bonus=settings.concept_bonus,
        repeat_penalty=settings.repeat_penalty,
        absence=settings.absence,
        persons=features.persons,
        persons_weight=settings.persons,
    )
    return evidence.repeat(captions_per_image)
