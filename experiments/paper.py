"""Figures of the paper (arXiv 2211.11694), to stand beside our numbers, and the claims its rows make."""

from __future__ import annotations

from dataclasses import dataclass

TABLE_1: dict[str, dict[str, float]] = {
    "a": {"CIDEr": 20.6, "BLEU-4": 7.4, "METEOR": 18.8, "ROUGE-L": 34.6, "SPICE": 12.3},
    "b": {"CIDEr": 43.6, "BLEU-4": 11.4, "METEOR": 20.5, "ROUGE-L": 39.1, "SPICE": 14.4},
    "c": {"CIDEr": 45.2, "BLEU-4": 20.3, "METEOR": 26.9, "ROUGE-L": 47.3, "SPICE": 21.3},
    "d": {"CIDEr": 92.6, "BLEU-4": 27.3, "METEOR": 25.4, "ROUGE-L": 51.8, "SPICE": 18.7},
    "e": {"CIDEr": 97.5, "BLEU-4": 28.2, "METEOR": 28.1, "ROUGE-L": 54.0, "SPICE": 21.7},
    "f": {"CIDEr": 116.7, "BLEU-4": 34.6, "METEOR": 28.1, "ROUGE-L": 57.4, "SPICE": 21.5},
    "g": {"CIDEr": 117.8, "BLEU-4": 35.0, "METEOR": 28.2, "ROUGE-L": 57.4, "SPICE": 21.7},
}
"""COCO validation, frozen encoder, no pre-training."""

TWIN_CIDER = 112.8
"""The autoregressive model of the same architecture: 5.0 below row g."""

INFILLING_CIDER = {"diffusion": 230.3, "twin": 203.5}
"""Caption infilling on COCO, CIDEr of the whole caption."""


@dataclass(frozen=True)
class Claim:
    """The paper's `better` row is over its `worse` row; `what` is the design that makes the difference."""

    better: str
    worse: str
    what: str


CLAIMS = (
    Claim("b", "a", "the concentrated attention mask helps the normal reverse process"),
    Claim("c", "a", "best-first inference helps"),
    Claim("c", "b", "best-first inference alone is over the mask alone"),
    Claim("d", "c", "length prediction helps best-first inference"),
    Claim("e", "c", "the concentrated attention mask helps best-first inference"),
    Claim("e", "d", "the mask is worth more than length prediction"),
    Claim("f", "d", "the mask helps on top of length prediction"),
    Claim("f", "d_noised", "the same, where words attend past the end, to noised end tokens"),
    Claim("f", "d_known", "the same, where words attend past the end, to padding that is never noised"),
    Claim("f", "e", "length prediction helps on top of the mask"),
    Claim("g", "f", "image-free training and guidance help"),
    Claim("g", "twin", "diffusion is over the autoregressive model of the same architecture"),
)
