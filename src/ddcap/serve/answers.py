"""The answers of the service, described for OpenAPI."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from ddcap.serve.limits import ServeLimits


class Sureness(BaseModel):
    """Confidence in a caption; empty if the model is not calibrated."""

    sure: float | None = Field(
        None, ge=0, le=1, description="probability of a CIDEr above the median human caption's"
    )
    faithful: float | None = Field(
        None, ge=0, le=1, description="probability that everything it names is there"
    )
    known: float | None = Field(
        None, ge=0, le=1, description="probability that the model knows this kind of image"
    )
    doubtful: list[str] | None = Field(None, description="words that under 30 % of annotators would use")


class PictureAnswer(Sureness):
    """The result for one image: a caption or an error."""

    caption: str | None = Field(None, description="likeliest caption; null if less sure than `min_sure`")
    captions: list[str] | None = Field(
        None, description="all captions, if `num` is over 1; fewer where fewer different ones fit"
    )
    guess: str | None = Field(None, description="caption withheld because of `min_sure`")
    why: str | None = Field(None, description="reason for withholding it")
    error: str | None = Field(None, description="reason for a missing caption")


class CaptionsAnswer(BaseModel):
    """One result per image, in order."""

    results: list[PictureAnswer]


class InfillAnswer(Sureness):
    """A caption with its blanks filled."""

    caption: str
    score: float = Field(description="mean log-probability of its tokens")


class RewriteAnswer(Sureness):
    """A caption with its unsupported words replaced; the confidence is empty if it stays as it was given."""

    caption: str
    template: str = Field(description="given caption, with ___ for words that the image does not support")
    fit: float = Field(description="how well the new caption fits the image, in nats per token")


class WordScore(BaseModel):
    """The image's support for a word: its gain in log-probability, in nats."""

    word: str
    gain: float


class CaptionScore(BaseModel):
    """The fit of a caption and the image, in nats per token, and for each word."""

    caption: str
    fit: float
    words: list[WordScore]


class ScoresAnswer(BaseModel):
    """One score per caption, in order."""

    results: list[CaptionScore]


class ErrorAnswer(BaseModel):
    """The reason for an error, in one line."""

    error: str


class StateAnswer(BaseModel):
    """The state of the service."""

    status: str


_ERRORS = {
    400: "the form cannot be read",
    401: "the API key is missing or unknown",
    408: "the body takes too long to arrive",
    413: "the request has too many bytes or images",
    415: "the body is neither JSON nor a form",
    422: "an option or an image is wrong; the error says which",
    429: "too many requests are waiting; try again later",
    500: "internal error; the log has the request's id",
    504: "the request took too long",
}


def one_line(text: str) -> str:
    """One line that can be sent: what people wrote is quoted in messages, half characters included."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def refusals(limits: ServeLimits, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route for its description; all of them, if none is named."""
    wanted = statuses or tuple(_ERRORS)
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": _ERRORS[status]}
        for status in wanted
        if status != 401 or limits.keys
    }
    if 429 in found:
        seconds = {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}
        found[429]["headers"] = {"Retry-After": seconds}
    return found
