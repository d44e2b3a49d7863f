"""Decoders of an autoregressive model: greedy, sampling and beam search, with templates.

Shapes: I images, R captions (R a multiple of I, grouped by image), K beams, L positions, V words.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.decoding.predictor import ConceptEvidence, choose_tokens
from ddcap.decoding.trace import DecodingResult
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.features import ImageFeatures


@torch.no_grad()  # not inference_mode: autocast would cast all weights anew at every step
def decode_left_to_right(
    model: AutoregressiveModel,
    features: ImageFeatures,
    tokens: Tensor,
    lengths: Tensor,
    end_id: int,
    *,
    may_end: bool,
    beams: int = 1,
    length_penalty: float = 1.0,
    temperature: float = 0.0,
    generator: np.random.Generator | None = None,
    concepts: ConceptEvidence | None = None,
    concept_weight: float = 0.0,
    keep: int = 1,
) -> DecodingResult:
    """Fill every MASK of `tokens`, from left to right; given words are kept where they are.

    Of K captions that are followed at once, those with the highest log-probability / tokens ** length_penalty
    go on; given words count, so that with several beams they speak for or against the words chosen before.

    Args:
        model: in evaluation mode.
        features: of I images.
        tokens: (R, L) MASK where words are wanted; padding past the lengths is not read.
        lengths: (R,) positions of each caption, end token included: its longest, if `may_end`.
        end_id: the end token.
        may_end: whether a wanted word may be the end token; what follows it is not decoded.
        beams: K; 1 is greedy, or a draw where the temperature is over 0.
        length_penalty: 1 compares by the mean per token; more prefers longer captions.
        temperature: 0 takes the likeliest token; above, tokens are drawn from p^(1/temperature).
        generator: source of randomness.
        concepts: of R captions, what is seen in their images; has a say at every step.
        concept_weight: what a concept named counts when the best of the beams is chosen.
        keep: of each caption's K beams so many are returned, at most K.

    Returns:
        R * `keep` captions, those of one row side by side and the best first, each with its length; their
        history tells of one token a step. There is no timestep: it is 0.
    """
    keys_values = model.project_memory(features)
    rows, longest = tokens.shape
    device = tokens.device
    words = torch.full((rows, beams, longest), end_id, device=device)
    confidences = torch.ones(rows, beams, longest, device=device)
    scores = torch.zeros(rows, beams, device=device)
    scores[:, 1:] = -torch.inf  # at the start all beams are the same caption: follow one
    sizes = torch.zeros(rows, beams, device=device)  # tokens so far
    is_finished = torch.zeros(rows, beams, dtype=torch.bool, device=device)
    logits, past = model.first_logits(rows * beams, keys_values)
    followed = concepts.repeat(beams) if concepts is not None else None
    positions = torch.arange(longest, device=device)
    first_beam = torch.arange(rows, device=device).unsqueeze(1) * beams  # (R, 1)
    for place in range(longest):
        log_probabilities = F.log_softmax(logits.float(), dim=-1).view(rows, beams, -1)  # (R, K, V)
        if followed is not None and followed.has_a_say:
            so_far = torch.where(positions < place, words, tokens.unsqueeze(1))  # (R, K, L)
            added = followed.log_probability(so_far.flatten(0, 1)).view_as(log_probabilities)
            log_probabilities = F.log_softmax(log_probabilities + added, dim=-1)
        is_finished = is_finished | (place >= lengths).unsqueeze(1)
        allowed = _allow(log_probabilities, tokens[:, place], is_finished, model.mask_id, end_id, may_end)
        grown = sizes + ~is_finished
        if beams == 1:
            chosen, _ = choose_tokens(allowed, temperature, generator)  # (R, 1)
            parent = torch.zeros_like(chosen)
        else:
            evidence = (scores.unsqueeze(2) + allowed) / (grown**length_penalty).unsqueeze(2)  # (R, K, V)
            best = evidence.flatten(1).topk(beams, dim=1).indices  # (R, K)
            parent, chosen = best // allowed.shape[2], best % allowed.shape[2]
        gained = allowed.flatten(1).gather(1, parent * allowed.shape[2] + chosen)
        scores = scores.gather(1, parent) + gained
        sizes, is_finished = grown.gather(1, parent), is_finished.gather(1, parent)
        order = parent.unsqueeze(2).expand(-1, -1, longest)
        words, confidences = words.gather(1, order), confidences.gather(1, order)
        words[:, :, place] = chosen
        is_chosen = (tokens[:, place] == model.mask_id).unsqueeze(1) & ~is_finished
        confidences[:, :, place] = torch.where(is_chosen, gained.exp(), 1.0)
        is_finished = is_finished | (chosen == end_id)
        if place + 1 == longest or bool(is_finished.all()):
            break
        if beams > 1:
            past = past.select((first_beam + parent).flatten())
        logits, past = model.next_logits(chosen.flatten(), keys_values, past)
    evidence = scores / sizes**length_penalty
    if followed is not None:
        evidence = evidence + concept_weight * followed.said(words.flatten(0, 1)).view(rows, beams)
    best = evidence.topk(keep, dim=1).indices.flatten()  # (R * keep,)
    row = torch.arange(rows, device=device).repeat_interleave(keep)
    return _result(
        words[row, best], confidences[row, best], sizes[row, best].long(), tokens[row], model.mask_id
    )


def _allow(
    log_probabilities: Tensor, given: Tensor, is_finished: Tensor, mask_id: int, end_id: int, may_end: bool
) -> Tensor:
    """(R, K, V) log-probabilities of the words that may come next, -inf for all others.

    `given` (R,) is the template's word, or MASK; a finished caption goes on with end tokens, for nothing.
    """
    barred = torch.full_like(log_probabilities, -torch.inf)
    is_given = (given != mask_id).view(-1, 1, 1)
    index = given.clamp(max=mask_id - 1).view(-1, 1, 1).expand(*log_probabilities.shape[:2], 1)
    only_given = barred.scatter(2, index, log_probabilities.gather(2, index))
    wanted = log_probabilities
    if not may_end:
        wanted = wanted.clone()
        wanted[:, :, end_id] = -torch.inf
    only_end = barred.clone()
    only_end[:, :, end_id] = 0.0
    allowed = torch.where(is_given, only_given, wanted)
    return torch.where(is_finished.unsqueeze(2), only_end, allowed)


def _result(
    words: Tensor, confidences: Tensor, lengths: Tensor, tokens: Tensor, mask_id: int
) -> DecodingResult:
    """The record of a decoding that chose one word a step, in order; given words are there from the start."""
    longest = int(lengths.max())
    words, confidences, given = words[:, :longest], confidences[:, :longest], tokens[:, :longest]
    steps = torch.arange(longest + 1, device=words.device).view(-1, 1, 1)  # (S + 1, 1, 1)
    is_there = (steps[:-1].flatten() < steps) | (given != mask_id)  # (S + 1, B, L)
    history = torch.where(is_there, words, mask_id)
    return DecodingResult(
        tokens=words,
        lengths=lengths,
        confidences=confidences,
        history=history,
        step_confidences=confidences.expand(longest, -1, -1),
        timesteps=torch.zeros(longest, len(words), dtype=torch.long, device=words.device),
    )
