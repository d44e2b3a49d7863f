"""The service: pictures in, captions out, over HTTP."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ddcap import __version__
from ddcap.captioner import Captioner
from ddcap.data.images import open_picture
from ddcap.decoding.caption import ImageResult, answer_of, confidence_of
from ddcap.errors import DDCapError, ImageError
from ddcap.serve.engine import BusyError, Engine, EngineSettings, TooLateError
from ddcap.serve.limits import Guard, ServeLimits
from ddcap.serve.stream import caption_events

Words = Annotated[list[str], Field(max_length=200)]


class Options(BaseModel):
    """What is asked of captions; each is as on the command line."""

    model_config = ConfigDict(extra="forbid")

    preset: str | None = Field(None, description="fast or best")
    steps: int | None = Field(None, ge=1, le=100)
    guidance: float | None = Field(None, ge=0, le=10)
    length: int | None = Field(None, ge=1, le=100, description="tokens, end token included")
    candidates: int | None = Field(None, ge=1, le=20)
    temperature: float | None = Field(None, ge=0, le=5)
    seed: int = Field(0, ge=0, le=2**32)
    concepts: str | None = Field(None, max_length=500)
    ban: Words | None = None
    neutral: bool | None = None
    min_words: int | None = Field(None, ge=1, le=100)
    max_chars: int | None = Field(None, ge=1, le=1000)

    def asked(self) -> dict[str, Any]:
        """As keyword arguments of a captioner."""
        return self.model_dump(exclude_none=True, exclude=_NOT_OF_CAPTIONERS)


_NOT_OF_CAPTIONERS = {"images", "image", "min_sure", "template", "caption", "keep"}


class CaptionsBody(Options):
    """Pictures to caption."""

    images: list[str] = Field(description="base64 of picture files", min_length=1)
    num: int = Field(1, ge=1, le=10, description="captions of each picture that say different things")
    include: Words | None = None
    prefix: str | None = Field(None, max_length=200)
    suffix: str | None = Field(None, max_length=200)
    min_sure: float | None = Field(None, ge=0, le=1, description="no caption where the model is less sure")


class InfillBody(Options):
    """A caption with blanks."""

    image: str = Field(description="base64 of a picture file")
    template: str = Field(max_length=500, examples=["a ___ dog on the [2]"])


class RewriteBody(Options):
    """A caption to be made true."""

    image: str = Field(description="base64 of a picture file")
    caption: str = Field(max_length=500)
    keep: Words = Field(default=[], description="words that stay")


class ScoreBody(BaseModel):
    """Captions to be weighed against a picture."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="base64 of a picture file")
    captions: list[Annotated[str, Field(max_length=500)]] = Field(min_length=1, max_length=50)


def create_app(
    captioner: Captioner, settings: EngineSettings | None = None, limits: ServeLimits | None = None
) -> FastAPI:
    """The service of a captioner.

    Args:
        captioner: of the model.
        settings: how much is done at once.
        limits: on a request.
    """
    limits = limits or ServeLimits()
    engine = Engine(captioner, settings)
    registry = CollectorRegistry()
    requests = Counter("ddcap_requests", "Requests.", ["route", "status"], registry=registry)
    seconds = Histogram("ddcap_seconds", "Seconds a request took.", ["route"], registry=registry)
    captions = Counter("ddcap_captions", "Captions given.", registry=registry)
    Gauge("ddcap_inside", "Pictures computed or waiting.", registry=registry).set_function(
        lambda: engine.inside
    )
    is_ready = True

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal is_ready
        yield
        is_ready = False
        engine.close()

    app = FastAPI(title="DDCap", version=__version__, lifespan=lifespan, description=_ABOUT)
    app.add_middleware(Guard, limits=limits, requests=requests, seconds=seconds)
    app.state.engine = engine

    @app.exception_handler(DDCapError)
    async def say(_: Request, error: DDCapError) -> JSONResponse:
        if isinstance(error, BusyError):
            return _error(429, str(error), {"Retry-After": str(error.retry_after)})
        return _error(504 if isinstance(error, TooLateError) else 422, str(error))

    @app.exception_handler(HTTPException)
    async def say_http(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.post("/v1/captions", openapi_extra=_body(CaptionsBody, "images"), tags=["captions"])
    async def caption_pictures(request: Request) -> dict[str, Any]:
        """Caption pictures: files of a form (`images`), or JSON with base64."""
        body, pictures = await _read(request, CaptionsBody, "images", limits)
        if len(pictures) > limits.images:
            raise HTTPException(413, f"{len(pictures)} images; at most {limits.images} a request")

        def work(captioner: Captioner) -> list[Any]:
            results = []
            for number, content in enumerate(pictures):
                name = f"image {number + 1}"
                try:
                    picture = opened(content, name)
                except ImageError as error:
                    results.append({"error": str(error)})
                    continue
                (found,) = captioner.caption_each([picture], **body.asked())
                results.append(answer_of(found, body.min_sure))
            return results

        results = await engine.run(work, len(pictures))
        captions.inc(sum("caption" in one for one in results))
        if all("error" in one for one in results):
            raise HTTPException(422, results[0]["error"])
        return {"results": results}

    @app.post("/v1/captions/stream", openapi_extra=_body(CaptionsBody, "images"), tags=["captions"])
    async def watch_caption(request: Request) -> StreamingResponse:
        """One picture's caption while it comes about: server-sent events "step", then "caption" or "error".

        One candidate is decoded, so that what is seen is what comes out.
        """
        body, pictures = await _read(request, CaptionsBody, "images", limits)
        if len(pictures) != 1 or body.num != 1:
            raise HTTPException(422, "send one picture, and ask for one caption of it")
        picture = await run_in_threadpool(opened, pictures[0], "image")
        engine.check_room()

        def work(captioner: Captioner) -> ImageResult:
            return next(captioner.caption_each([picture], **{**body.asked(), "candidates": 1}))

        def answer(result: ImageResult) -> dict[str, Any]:
            captions.inc()
            return answer_of(result, body.min_sure)

        events = caption_events(engine, work, answer)
        return StreamingResponse(events, media_type="text/event-stream")

    @app.post("/v1/infill", openapi_extra=_body(InfillBody, "image"), tags=["words"])
    async def fill_blanks(request: Request) -> dict[str, Any]:
        """Fill the blanks of a caption: ___ of any width, [3] of three tokens."""
        body, (content,) = await _read(request, InfillBody, "image", limits)
        caption = await engine.run(
            lambda captioner: captioner.infill(opened(content, "image"), body.template, **body.asked())
        )
        return {"caption": caption.text, "score": round(caption.score, 4), **confidence_of(caption)}

    @app.post("/v1/rewrite", openapi_extra=_body(RewriteBody, "image"), tags=["words"])
    async def rewrite_caption(request: Request) -> dict[str, Any]:
        """Replace the words of a caption that the picture does not support."""
        body, (content,) = await _read(request, RewriteBody, "image", limits)
        result = await engine.run(
            lambda captioner: captioner.rewrite(
                opened(content, "image"), body.caption, keep=body.keep, **body.asked()
            )
        )
        return {"caption": result.text, "template": result.template, "fit": round(result.evidence.fit, 4)}

    @app.post("/v1/score", openapi_extra=_body(ScoreBody, "image"), tags=["words"])
    async def score_captions(request: Request) -> dict[str, Any]:
        """What the picture says for given captions, word by word."""
        body, (content,) = await _read(request, ScoreBody, "image", limits)
        found = await engine.run(lambda captioner: captioner.score(opened(content, "image"), body.captions))
        results = [
            {
                "caption": text,
                "fit": round(one.fit, 4),
                "words": [{"word": word.word, "gain": round(word.gain, 4)} for word in one.words],
            }
            for text, one in zip(body.captions, found, strict=True)
        ]
        return {"results": results}

    @app.get("/healthz", tags=["operation"])
    async def is_alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operation"])
    async def may_ask() -> JSONResponse:
        """Whether it takes requests: not while it shuts down."""
        return JSONResponse({"status": "ready" if is_ready else "closing"}, 200 if is_ready else 503)

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


_ABOUT = (
    "Captions by discrete diffusion. The words of a caption can be asked for, banned, weighed and rewritten."
)


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def opened(content: bytes, name: str) -> Image.Image:
    """A picture from the bytes of its file.

    Raises:
        ImageError: if it cannot be read.
    """
    if not content:
        raise ImageError(f"{name}: is empty; send a picture")
    with open_picture(io.BytesIO(content), name) as picture:
        picture.load()
        return picture.copy()


async def _read(
    request: Request, kind: type[Any], field: str, limits: ServeLimits
) -> tuple[Any, list[bytes]]:
    """The body of a request and the files in it, from JSON or from a form.

    Raises:
        HTTPException: 415 or 422, if it cannot be read.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    files: list[bytes] = []
    if content_type == "multipart/form-data":
        form = await request.form(max_files=limits.images + 1, max_fields=200)
        values: dict[str, Any] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != field:
                    raise HTTPException(422, f"file {name!r}: files go into {field!r}")
                files.append(await value.read())
            elif name in _LISTS:
                values.setdefault(name, []).append(value)
            else:
                values[name] = value
        values[field] = [""] * len(files) if field == "images" else ""
    elif content_type == "application/json":
        try:
            values = json.loads(await request.body())
        except ValueError:
            raise HTTPException(422, "the body is no JSON") from None
    else:
        raise HTTPException(415, "send application/json, or multipart/form-data with files")
    try:
        body = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise HTTPException(422, f"{where}: {first['msg']}") from None
    if content_type == "application/json":
        given = getattr(body, field)
        files = [_decoded(text, field) for text in (given if isinstance(given, list) else [given])]
    elif len(files) != 1 and field == "image":
        raise HTTPException(422, f"{len(files)} files; send one, as 'image'")
    return body, files


_LISTS = ("ban", "include", "keep", "captions")


def _decoded(text: str, field: str) -> bytes:
    _, _, plain = text.rpartition("base64,")  # a data URL, or base64 alone
    try:
        return base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(422, f"{field}: is no base64 of a file") from None


def _body(kind: type[BaseModel], field: str) -> dict[str, Any]:
    """How a request's body is described: JSON, or a form with files."""
    plain, form = kind.model_json_schema(), kind.model_json_schema()
    file = {"type": "string", "format": "binary"}
    form["properties"][field] = {"type": "array", "items": file} if field == "images" else file
    content = {"application/json": {"schema": plain}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}
