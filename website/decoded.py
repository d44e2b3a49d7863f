"""Data of the figures of the paper's page: one photograph, captioned by the default, step by step.

Shapes: B captions (here 1), L positions, S steps, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddcap import Caption, Captioner
from ddcap.decoding.caption import build_captions
from ddcap.decoding.generate import generate
from ddcap.decoding.predictor import Predictor
from ddcap.decoding.sampler import concept_evidence
from ddcap.decoding.trace import DecodingResult
from ddcap.diffusion import q_sample
from ddcap.model.features import ImageFeatures
from ddcap.model.guidance import guide

BLANK, END = "MASK", "end"


@dataclass(frozen=True)
class Guess:
    """The likeliest token at a position in a step, its probability, and whether it was committed."""

    word: str
    probability: float
    committed: bool


class Decoded:
    """The default's caption of a photograph, and what the model said on the way.

    Args:
        captioner: of the default model, in PyTorch.
        photo: to be captioned.
    """

    def __init__(self, captioner: Captioner, photo: Path) -> None:
        self.captioner, self.model, self.photo = captioner, captioner.model, photo
        self.features: ImageFeatures = captioner.features([photo])
        self.caption: Caption = captioner(photo)[0]
        self.settings = replace(captioner.decoding, length=self.caption.length, candidates=1)
        self.result: DecodingResult = generate(
            self.model, self.features, self.settings, captioner.tokenizer.end_id
        )
        if build_captions(self.result, [0], captioner.tokenizer)[0].text != self.caption.text:
            raise RuntimeError("decoding again gave another caption")

    @property
    def steps(self) -> int:
        """S."""
        return len(self.result.history) - 1

    def words(self, tokens: Tensor) -> list[str]:
        """Printable tokens (L,): MASK and the end token by their names."""
        pieces = self.captioner.tokenizer.pieces(tokens.tolist())
        named = {self.model.mask_id: BLANK, self.captioner.tokenizer.end_id: END}
        return [named.get(token, piece.strip()) for token, piece in zip(tokens.tolist(), pieces, strict=True)]

    @cached_property
    def predictor(self) -> Predictor:
        """The model as the decoder asks it."""
        concepts = concept_evidence(self.model, self.features, self.settings, 1)
        steps = self.model.denoising_steps(self.features, with_image_free=False)
        return Predictor(steps, self.result.lengths, 1.0, concepts)

    def guesses(self) -> list[list[Guess]]:
        """S rows of L guesses: what stands there already, or the likeliest token for a MASK."""
        rows = []
        for step in range(self.steps):
            before, after = self.result.history[step], self.result.history[step + 1]
            places = torch.arange(before.shape[1]).unsqueeze(0)
            chosen, log_probability = self.predictor.likeliest(before, self.result.timesteps[step], places)
            is_blank = before == self.model.mask_id
            texts = self.words(torch.where(is_blank, chosen, before)[0])
            rows.append(
                [
                    Guess(text, float(chance), not bool(still))
                    for text, chance, still in zip(
                        texts,
                        torch.where(is_blank, log_probability.exp(), self.result.confidences)[0],
                        (after == self.model.mask_id)[0],
                        strict=True,
                    )
                ]
            )
        return rows

    def noised(self, timesteps: list[int], seed: int) -> list[list[str]]:
        """The caption after the forward process, drawn anew for each t."""
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for timestep in timesteps:
            at = torch.tensor([timestep])
            noised = q_sample(self.result.tokens, at, self.model.schedule, generator)
            rows.append(self.words(noised[0]))
        return rows

    def by_length(self, lengths: list[int]) -> list[tuple[int, str, float]]:
        """For each length its best-first caption and mean log-probability of a token."""
        found = []
        for length in lengths:
            result = generate(
                self.model,
                self.features,
                replace(self.settings, length=length),
                self.captioner.tokenizer.end_id,
            )
            text = build_captions(result, [0], self.captioner.tokenizer)[0].text
            found.append((length, text, float(result.evidence()[0])))
        return found

    def committed_at(self, words: set[str]) -> tuple[int, int]:
        """Step and position of the first of `words` that was committed; of the first token, without such."""
        for event in self.caption.trace.events:
            if event.token.strip() in words:
                return event.step, event.position
        return self.caption.trace.events[0].step, self.caption.trace.events[0].position

    def guided(
        self, step: int, position: int, scales: list[float], count: int
    ) -> tuple[list[str], np.ndarray]:
        """Words that are among the likeliest `count` at any scale, and their probabilities (scales, words).

        At a position before a step. Scale 0 is the image-free branch alone, scale 1 the image alone; what the
        decoder adds for concepts is left out.
        """
        steps = self.model.denoising_steps(self.features, with_image_free=True)
        tokens, place = self.result.history[step], torch.tensor([[position]])
        seen, unseen = steps.logits(tokens, self.result.timesteps[step], self.result.lengths, place)
        chances = torch.stack([guide(seen, unseen, scale)[0, 0].softmax(0) for scale in scales])
        chosen = chances.topk(count).indices.unique()
        chosen = chosen[chances[-1][chosen].argsort(descending=True)]
        return self.words(chosen), chances[:, chosen].numpy()
