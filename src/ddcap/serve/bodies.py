"""The body of a request: options and images, from JSON or from a form, and their description."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ddcap.errors import DDCapError, ImageError
from ddcap.serve.limits import ServeLimits

Words = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=200)]
Image = Annotated[str, Field(description="base64 of an image file, a data URL, or its http address")]


class Options(BaseModel):
    """Options for captions, as on the command line."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    preset: str | None = Field(None, max_length=20, description="fast or best")
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
        """The options as keyword arguments of a captioner."""
        return self.model_dump(exclude_none=True, exclude=_NOT_OF_CAPTIONERS)


_NOT_OF_CAPTIONERS = {"images", "image", "min_sure", "template", "caption", "keep"}


class CaptionsBody(Options):
    """Images to caption."""

    images: list[Image] = Field(min_length=1)
    num: int = Field(1, ge=1, le=10, description="captions per image, each with different content")
    include: Words | None = None
    prefix: str | None = Field(None, max_length=200)
    suffix: str | None = Field(None, max_length=200)
    min_sure: float | None = Field(
        None, ge=0, le=1, description="withhold captions that the model is less sure of"
    )


class InfillBody(Options):
    """A caption with blanks."""

    image: Image
    template: str = Field(max_length=500, examples=["a ___ dog on the [2]"])


class RewriteBody(Options):
    """A caption to rewrite."""

    image: Image
    caption: str = Field(max_length=500, examples=["a man rides a horse"])
    keep: Words = Field(default=[], description="words to keep")


class ScoreBody(BaseModel):
    """Captions to score against an image."""

    model_config = ConfigDict(extra="forbid")

    image: Image
    captions: list[Annotated[str, Field(max_length=500)]] = Field(
        min_length=1, max_length=50, examples=[["a dog on the grass", "a cat"]]
    )


async def read_body(
    request: Request, kind: type[Any], field: str, limits: ServeLimits
) -> tuple[Any, list[bytes | str]]:
    """The body of a request and its images: the bytes of each, or its address.

    Args:
        request: with JSON or a form.
        kind: of body.
        field: where images are: "images" or "image".
        limits: on a request.

    Raises:
        HTTPException: 413, 415 or 422, if it cannot be read.
        DDCapError: if a value is not as it has to be.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    images: list[bytes | str] = []
    if content_type == "multipart/form-data":
        # each list may be full, and each image over the limit be told
        form = await request.form(max_files=limits.images + 1, max_fields=1000)
        values: dict[str, Any] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != field:
                    raise HTTPException(422, f"file {name!r}: unknown field; send files as {field!r}")
                images.append(await value.read())
            elif name == field:
                raise HTTPException(422, f"{field}: not a file; send one (-F {field}=@photo.jpg)")
            elif value == "" and name not in _NEVER_EMPTY:
                continue  # a form sends an empty field for what was not filled in
            elif name in _LISTS:
                values.setdefault(name, []).append(value)
            else:
                values[name] = value
        values[field] = [""] * len(images) if field == "images" else ""
    elif content_type == "application/json":
        try:
            values = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise HTTPException(422, "the body is not valid JSON; correct it") from None
    else:
        raise HTTPException(
            415, "unsupported content type; send application/json, or multipart/form-data with files"
        )
    body = checked(kind, values)
    if content_type == "application/json":
        given = getattr(body, field)
        images = [_decoded(text, field) for text in (given if isinstance(given, list) else [given])]
    elif len(images) != 1 and field == "image":
        raise HTTPException(422, f"{len(images)} files; send one file, as 'image'")
    if len(images) > limits.images:
        raise HTTPException(413, f"{len(images)} images, but at most {limits.images} per request; send fewer")
    return body, images


_LISTS = ("ban", "include", "keep", "captions")
_NEVER_EMPTY = ("caption", "captions", "template")


def checked(kind: type[Any], values: Any) -> Any:
    """A body of some kind.

    Raises:
        DDCapError: if a value is not as it has to be.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise DDCapError(f"{where}: {first['msg']}") from None


def _decoded(text: str, field: str) -> bytes | str:
    if text[:8].lower().startswith(("http://", "https://")):  # no base64 has a colon
        return text
    return image_bytes(text, field)


def image_bytes(text: str, name: str) -> bytes:
    """The file that a data URL holds, or base64 alone.

    Raises:
        ImageError: if it is no base64; `name` is for the message.
    """
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{name}: not valid base64; encode the file again") from None


def described(kind: type[BaseModel], field: str, limits: ServeLimits) -> dict[str, Any]:
    """Describe a request's body in OpenAPI: JSON, or a form with files."""
    plain, form = kind.model_json_schema(), kind.model_json_schema()
    for name, schema in form["properties"].items():
        form["properties"][name] = _without_null(schema)  # a form leaves out what it does not say
    form["properties"][field] = {"type": "string", "format": "binary"}
    if field == "images":
        plain["properties"][field]["maxItems"] = limits.images
        files = {"type": "array", "items": form["properties"][field]}
        form["properties"][field] = {**files, "minItems": 1, "maxItems": limits.images}
    content = {"application/json": {"schema": plain}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" not in schema:
        return schema
    (kind,) = (one for one in schema["anyOf"] if one != {"type": "null"})
    return {**{name: value for name, value in schema.items() if name not in ("anyOf", "default")}, **kind}
