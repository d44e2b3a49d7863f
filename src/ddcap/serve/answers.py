"""What the service answers, described: so that programs know what they may read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from ddcap.serve.limits import ServeLimits


class Sureness(BaseModel):
    """How sure the model is of a caption; nothing of a model that is not calibrated."""

    sure: float | None = Field(None, ge=0, le=1, description="that people would take it for one of theirs")
    faithful: float | None = Field(None, ge=0, le=1, description="that all it names is there")
    known: float | None = Field(None, ge=0, le=1, description="that the model knows pictures of this kind")
    doubtful: list[str] | None = Field(None, description="words that people would hardly have used")


class PictureAnswer(Sureness):
    """What became of one picture: a caption, or why there is none."""

    caption: str | None = Field(None, description="the likeliest; null: less sure than `min_sure`")
    captions: list[str] | None = Field(None, description="all of them, if several were asked for")
    guess: str | None = Field(None, description="the caption that is not sure enough")
    why: str | None = Field(None, description="why it is not")
    error: str | None = Field(None, description="why the picture has no caption")


class CaptionsAnswer(BaseModel):
    """What became of each picture, in order."""

    results: list[PictureAnswer]


class InfillAnswer(Sureness):
    """A caption whose blanks are filled."""

    caption: str
    score: float = Field(description="mean log-probability of its tokens")


class RewriteAnswer(BaseModel):
    """A caption after its doubtful words were replaced."""

    caption: str
    template: str = Field(description="the given one, ___ where the picture does not support it")
    fit: float = Field(description="what the picture says for the new one: nats a token")


class WordScore(BaseModel):
    """What the picture says for a word: nats more than without it."""

    word: str
    gain: float


class CaptionScore(BaseModel):
    """What the picture says for a caption: nats a token, and word by word."""

    caption: str
    fit: float
    words: list[WordScore]


class ScoresAnswer(BaseModel):
    """What the picture says for each caption, in order."""

    results: list[CaptionScore]


class ErrorAnswer(BaseModel):
    """What was wrong, in one line."""

    error: str


class StateAnswer(BaseModel):
    """How the service is."""

    status: str


_ERRORS = {
    400: "a form that cannot be read",
    401: "no key that is known",
    408: "the body takes too long to come",
    413: "too many bytes or pictures",
    415: "neither JSON nor a form",
    422: "an option, a picture or a demand that cannot be met; the line says which",
    429: "too many requests are waiting",
    500: "a mistake of the service; its log has the request's id",
    504: "took longer than a request may",
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
