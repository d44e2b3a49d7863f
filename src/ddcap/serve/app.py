"""The service: images in, captions out, over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ddcap import __version__
from ddcap.captioner import Captioner
from ddcap.decoding.caption import ImageResult, answer_of, confidence_of
from ddcap.errors import DDCapError, ImageError
from ddcap.serve.addresses import Fetcher
from ddcap.serve.answers import (
    CaptionsAnswer,
    InfillAnswer,
    RewriteAnswer,
    ScoresAnswer,
    StateAnswer,
    one_line,
    refusals,
)
from ddcap.serve.bodies import CaptionsBody, InfillBody, RewriteBody, ScoreBody, described, read_body
from ddcap.serve.engine import BusyError, Engine, EngineSettings, TooLateError
from ddcap.serve.images import opened
from ddcap.serve.limits import Guard, ServeLimits
from ddcap.serve.stream import caption_events


def create_app(
    captioner: Captioner,
    settings: EngineSettings | None = None,
    limits: ServeLimits | None = None,
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """The service of a captioner.

    Args:
        captioner: of the model.
        settings: how much is done at once.
        limits: on a request.
        fetcher: of images that are named by address; None: none is fetched.
    """
    limits = limits or ServeLimits()
    engine, sizes = Engine(captioner, settings), captioner.model.preprocessing
    registry = CollectorRegistry()
    requests = Counter("ddcap_requests", "Requests.", ["route", "status"], registry=registry)
    seconds = Histogram("ddcap_seconds", "Seconds a request took.", ["route"], registry=registry)
    captions = Counter("ddcap_captions", "Captions given.", registry=registry)
    Gauge("ddcap_inside", "Images computed or waiting.", registry=registry).set_function(
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
    app.state.engine, app.state.captions = engine, captions

    @app.exception_handler(DDCapError)
    async def say(_: Request, error: DDCapError) -> JSONResponse:
        if isinstance(error, BusyError):
            return _error(429, str(error), {"Retry-After": str(error.retry_after)})
        return _error(504 if isinstance(error, TooLateError) else 422, str(error))

    @app.exception_handler(HTTPException)
    async def say_http(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail), error.headers)

    async def images_of(named: list[bytes | str], name: str) -> list[bytes | ImageError]:
        """The bytes of each image, or why there are none."""
        engine.check_room(len(named))  # before anything is fetched for nothing
        fetched = (_fetched(one, name.format(number), fetcher) for number, one in enumerate(named, 1))
        return await asyncio.gather(*fetched)

    async def asked(request: Request, kind: type[Any]) -> tuple[Any, bytes]:
        """The body of a request for one image, and its bytes."""
        body, named = await read_body(request, kind, "image", limits)
        (content,) = await images_of(named, "image")
        if isinstance(content, ImageError):
            raise content
        return body, content

    @app.post("/v1/captions", **_route("captions", CaptionsAnswer, CaptionsBody, "images", limits))
    async def caption_images(request: Request) -> dict[str, Any]:
        """Caption images: files of a form (`images`), or JSON with base64."""
        body, named = await read_body(request, CaptionsBody, "images", limits)
        images = await images_of(named, "image {}")

        until = time.monotonic() + engine.settings.seconds

        def work(captioner: Captioner) -> list[dict[str, Any]]:
            results = []
            for number, content in enumerate(images, 1):
                if time.monotonic() > until:
                    raise engine.too_late()  # nobody waits for the others any more
                try:
                    if isinstance(content, ImageError):
                        raise content
                    image = opened(content, f"image {number}", limits, sizes)
                except ImageError as error:
                    results.append({"error": one_line(str(error))})
                    continue
                (found,) = captioner.caption_each([image], **body.asked())
                results.append(answer_of(found, body.min_sure))
            return results

        results = await engine.run(work, len(images))
        captions.inc(sum("caption" in one for one in results))
        if all("error" in one for one in results):
            raise HTTPException(422, results[0]["error"])
        return {"results": results}

    stream = {"content": {"text/event-stream": {"schema": _EVENT}}, "description": _EVENTS}
    watched = _route("captions", None, CaptionsBody, "images", limits)
    watched["responses"][200] = stream

    @app.post("/v1/captions/stream", **watched, response_class=StreamingResponse)
    async def watch_caption(request: Request) -> StreamingResponse:
        """One image's caption while it comes about: server-sent events "step", then "caption" or "error".

        One candidate is decoded, so that what is seen is what comes out.
        """
        body, named = await read_body(request, CaptionsBody, "images", limits)
        if len(named) != 1 or body.num != 1:
            raise HTTPException(422, "streaming needs one image and one caption; send one image with num=1")
        (content,) = await images_of(named, "image")
        if isinstance(content, ImageError):
            raise content
        image = await run_in_threadpool(opened, content, "image", limits, sizes)
        engine.check_room()

        def work(captioner: Captioner) -> ImageResult:
            return next(captioner.caption_each([image], **{**body.asked(), "candidates": 1}))

        def answer(result: ImageResult) -> dict[str, Any]:
            captions.inc()
            return answer_of(result, body.min_sure)

        events = caption_events(engine, work, answer)
        return StreamingResponse(events, media_type="text/event-stream")

    @app.post("/v1/infill", **_route("words", InfillAnswer, InfillBody, "image", limits))
    async def fill_blanks(request: Request) -> dict[str, Any]:
        """Fill the blanks of a caption: ___ for one to four tokens, [3] for three."""
        body, content = await asked(request, InfillBody)
        caption = await engine.run(
            lambda captioner: captioner.infill(
                opened(content, "image", limits, sizes), body.template, **body.asked()
            )
        )
        return {"caption": caption.text, "score": round(caption.score, 4), **confidence_of(caption)}

    @app.post("/v1/rewrite", **_route("words", RewriteAnswer, RewriteBody, "image", limits))
    async def rewrite_caption(request: Request) -> dict[str, Any]:
        """Replace the words of a caption that the image does not support."""
        body, content = await asked(request, RewriteBody)
        result = await engine.run(
            lambda captioner: captioner.rewrite(
                opened(content, "image", limits, sizes), body.caption, keep=body.keep, **body.asked()
            )
        )
        sure = {} if result.after is None else confidence_of(result.after)
        fit = round(result.evidence.fit, 4)
        return {"caption": result.text, "template": result.template, "fit": fit, **sure}

    @app.post("/v1/score", **_route("words", ScoresAnswer, ScoreBody, "image", limits))
    async def score_captions(request: Request) -> dict[str, Any]:
        """Score given captions of an image, word by word."""
        body, content = await asked(request, ScoreBody)
        found = await engine.run(
            lambda captioner: captioner.score(opened(content, "image", limits, sizes), body.captions)
        )
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
    async def is_alive() -> StateAnswer:
        """Say that the process is alive."""
        return StateAnswer(status="alive")

    @app.get("/readyz", tags=["operation"], responses={503: {"model": StateAnswer}})
    async def may_ask(response: Response) -> StateAnswer:
        """Say if requests are taken: not while the service shuts down."""
        response.status_code = 200 if is_ready else 503
        return StateAnswer(status="ready" if is_ready else "closing")

    exposition = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "counters"}
    answers: dict[int | str, Any] = {**refusals(limits, 401), 200: exposition}

    @app.get("/metrics", tags=["operation"], responses=answers, response_class=Response, **_keyed(limits))
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


_ABOUT = (
    "Captions by discrete diffusion. The words of a caption can be asked for, banned, weighed and rewritten."
)
_EVENTS = 'server-sent events: "step" with the tokens so far (null: not yet), then "caption" or "error"'
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["step", "caption", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


def _route(
    tag: str, answer: type[BaseModel] | None, body: type[BaseModel], field: str, limits: ServeLimits
) -> dict[str, Any]:
    """Describe a route that takes images."""
    return {
        "tags": [tag],
        "response_model": answer,
        "response_model_exclude_unset": True,
        "responses": refusals(limits),
        "openapi_extra": described(body, field, limits),
        **_keyed(limits),
    }


def _keyed(limits: ServeLimits) -> dict[str, Any]:
    """That a route needs a key, for its description; the guard looks at it."""
    return {"dependencies": [Depends(HTTPBearer(auto_error=False))]} if limits.keys else {}


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": one_line(reason)}, status, headers)


async def _fetched(image: bytes | str, name: str, fetcher: Fetcher | None) -> bytes | ImageError:
    if isinstance(image, bytes):
        return image
    if fetcher is None:
        return ImageError(
            f"{name}: this service does not download URLs; send the file, or start it with --allow-urls"
        )
    try:
        return await fetcher.fetch(image, name)
    except ImageError as error:
        return error
