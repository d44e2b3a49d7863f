"""Compare who chooses among row g's candidates of several lengths: itself, its twin, or an oracle.

Shapes: I images, K candidates of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ddcap.captioner import Captioner
from ddcap.data.batches import fit_length
from ddcap.decoding.scoring import pseudo_log_likelihoods
from ddcap.evaluation.metrics import bootstrap_interval, score_captions
from ddcap.evaluation.result import diagnose
from ddcap.settings import DecodingSettings, dump_settings
from experiments.analysis.candidates import Candidates, candidates_of
from experiments.analysis.loss_by_mask import twin_losses
from experiments.means import summary
from experiments.notebook import Notebook
from experiments.split import IMAGES_AT_ONCE, Split

Scores = dict[str, np.ndarray]
"""Name of a judge to (I, K): what it thinks of each candidate."""


def rerank(
    captioners: dict[str, Captioner],
    split: Split,
    settings: DecodingSettings,
    notebook: Notebook,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """CIDEr of the candidate that each judge likes best, and its paired difference to the likeliest length.

    Args:
        captioners: row "g" and its "twin".
        split: of the images.
        settings: how g decodes, with one candidate.
        notebook: holds what is finished.
        say: is told what begins.
    """
    candidates = candidates_of(captioners["g"], split, settings, notebook, say)

    def compute() -> dict[str, Any]:
        say("judging candidates")
        texts = candidates.texts(captioners["g"].tokenizer)
        return _judged(texts, _judge(captioners, split, candidates, texts), split)

    made_from = ["rerank", dump_settings(settings), split.name, len(split.records)]
    content = notebook.part("reranking", made_from, compute)
    return {key: value for key, value in content.items() if key != "made_from"}


def _judge(
    captioners: dict[str, Captioner], split: Split, candidates: Candidates, texts: list[list[str]]
) -> Scores:
    tokens, sampler = candidates.tokens, candidates.sampler
    captioner = captioners["g"]
    pseudo = np.stack(
        [
            pseudo_log_likelihoods(
                captioner.model, split.features(captioner, [row]), ids, captioner.tokenizer
            )
            for row, ids in enumerate(candidates.ids)
        ]
    )
    of_twin = _of_twin(captioners["twin"], split, texts)
    return {
        "sampler": sampler,
        "sampler_per_token": sampler / tokens,
        "sampler_per_squared_token": sampler / tokens**2,
        "sampler_and_length": sampler + candidates.length,
        "pseudo_likelihood_per_token": pseudo / tokens,
        "twin_per_token": of_twin,
        "sampler_and_twin_per_token": sampler / tokens + of_twin,
    }


def _of_twin(twin: Captioner, split: Split, texts: list[list[str]]) -> np.ndarray:
    """(I, K) the twin's mean log-probability of a token."""
    tokenizer, longest = twin.tokenizer, twin.model.config.model.max_length
    end = tokenizer.end_id
    parts = []
    for start in range(0, len(texts), IMAGES_AT_ONCE):
        own = texts[start : start + IMAGES_AT_ONCE]
        encoded = tokenizer.encode_batch([text for of_image in own for text in of_image])
        rows = [fit_length(ids, longest, end_id=end, padding_id=end, learn_padding=False) for ids in encoded]
        sizes = torch.tensor([len(ids) for ids in rows])
        padded = torch.tensor([ids + [end] * (int(sizes.max()) - len(ids)) for ids in rows])
        features = split.features(twin, range(start, start + len(own)))
        losses = twin_losses(twin.model, features, padded.to(twin.model.device)).cpu()
        is_real = torch.arange(padded.shape[1]) < sizes.unsqueeze(1)
        parts.append((-(losses * is_real).sum(dim=1) / sizes).view(len(own), -1).numpy())
    return np.concatenate(parts)


def _judged(texts: list[list[str]], scores: Scores, split: Split) -> dict[str, Any]:
    images = [record.image_id for record in split.records]
    columns = [dict(zip(images, column, strict=True)) for column in zip(*texts, strict=True)]
    ciders = np.array([score_captions(column, split.references).per_image["CIDEr"] for column in columns]).T
    found = {}
    for name, values in {"likeliest_length": -np.arange(len(columns)), **scores, "oracle": ciders}.items():
        best = np.broadcast_to(values, ciders.shape).argmax(axis=1)
        picked = ciders[np.arange(len(images)), best]
        paired = (picked - ciders[:, 0]).tolist()
        looked_at = diagnose(own[place] for own, place in zip(texts, best.tolist(), strict=True))
        found[name] = {
            "CIDEr": float(picked.mean()),
            "interval_95": list(bootstrap_interval(picked.tolist())),
            "minus_likeliest_length": summary(paired),
            "repeated_word": looked_at.repeated_word,
            "words": looked_at.mean_length,
        }
    return {"pictures": len(images), "candidates": len(columns), "judges": found}
