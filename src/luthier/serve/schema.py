"""Requests as they come over HTTP: validated strictly, refused in OpenAI's error shape, never ignored silently."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_SEED = 2**53
NOT_SERVED = ("tools", "tool_choice", "functions", "function_call", "audio", "modalities", "best_of", "suffix",
              "logit_bias", "prediction", "web_search_options")  # fmt: skip
"""Fields that change the answer and are not implemented: 400, unless they are null or empty."""
NOT_IN_MESSAGES = ("tool_calls", "function_call", "audio")


class ApiError(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, kind: str = "", retry_after: int = 1
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        usual = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
        self.kind = kind or usual
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        return {
            401: {"WWW-Authenticate": "Bearer"},
            408: {"Connection": "close"},
            429: {"Retry-After": str(self.retry_after)},
            503: {"Retry-After": str(self.retry_after)},
        }.get(self.status, {})

    def body(self) -> dict[str, Any]:
        """The JSON that goes out."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def _integral(value: Any) -> Any:
    """Whole floats are integers in JSON; booleans are not numbers."""
    if isinstance(value, bool):
        raise ValueError("a number, not a boolean")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a finite number")
    return value


Whole = Annotated[int, BeforeValidator(_integral)]
Real = Annotated[float, BeforeValidator(_number)]


TokenId = Annotated[int, Field(strict=True)]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """OpenAI's error shape."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "the request is wrong",
        401: "no or a wrong key",
        403: "another origin",
        404: "no such model or path",
        408: "the body came too slowly",
        413: "the body is too large",
        422: "never sent; wrong requests are 400",
        429: "too many at once: Retry-After says when",
        500: "this request failed inside",
        503: "not ready, or going down",
        504: "the deadline has passed",
    }.items()
}
"""Every error of every route, for the OpenAPI schema."""

STREAMED: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {
        "description": "the answer; with `stream` as server-sent events",
        "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {"type": "string"}}},
    },
}


def _nullable(schema: dict[str, Any]) -> None:
    """The schema says of every field that may be left out that it may be null as well."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        kinds = field.get("anyOf") or [{key: value for key, value in field.items() if key not in ("default", "title")}]
        if name in required or {"type": "null"} in kinds:
            continue
        kept = {key: value for key, value in field.items() if key in ("default", "title")}
        schema["properties"][name] = {"anyOf": [*kinds, {"type": "null"}], **kept}


class _Body(BaseModel):
    """JSON null is a field that was not given: OpenAI's client sends None as null."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


def refuse_given(values: Any, names: Sequence[str]) -> Any:
    """The values as they are; a validation error that names the first of these fields that says something."""
    for name in names if isinstance(values, dict) else ():
        if values.get(name) not in (None, [], {}, "none"):
            raise PydanticCustomError("not_served", "{param} is not served", {"param": name})
    return values


def place_of(error: Any, body: Any) -> str:
    """Where in the body a validation error stands, as in `messages.0.role`: pydantic's own place also names which of
    several types was tried."""
    loc, value, parts = [part for part in error["loc"] if part != "body"], body, []
    for part in loc:
        inside = isinstance(value, dict) and part in value
        inside = inside or (isinstance(value, list) and isinstance(part, int) and part < len(value))
        if inside:
            value = value[part]
        if inside or (error["type"] == "missing" and part == loc[-1]):
            parts.append(str(part))
    if name := (error.get("ctx") or {}).get("param"):
        parts.append(name)
    return ".".join(parts)


def deepest(errors: Sequence[Any], body: Any) -> tuple[str, Any]:
    """(place, error): the first one, or of those inside its field the one that says most exactly where."""
    found = [(place_of(error, body), error) for error in errors]
    return max((one for one in found if one[0].startswith(found[0][0])), key=lambda one: one[0].count("."))


def ignored(body: BaseModel) -> dict[str, str]:
    """The header that names what was sent and is not known, so that it is not ignored in silence."""
    names = {name for name in _unknown(body, "") if re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name)}
    return {"X-Luthier-Ignored": ",".join(sorted(names)[:20])} if names else {}


def _unknown(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _unknown(one, place)
    elif isinstance(value, BaseModel):
        yield from (place + name for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{place}{name}.")


class StreamOptions(_Body):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: bool = False


class Part(_Body):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        return refuse_given(values, NOT_IN_MESSAGES)

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or ())


class JsonSchema(_Body):
    """The schema of `response_format`; it is always kept to, `strict` or not."""

    name: str = Field("answer", max_length=200)
    description: str = ""
    strict: bool = True
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Body):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            what = "it belongs to the type json_schema, and only to that"
            raise PydanticCustomError("json_schema", what, {"param": "json_schema"})
        return self


class Sampled(_Body):
    """What both completion routes share."""

    model: str = Field(min_length=1, max_length=200)
    temperature: Real = Field(1.0, ge=0, le=2)
    top_p: Real = Field(1.0, ge=0, le=1)
    top_k: Whole = Field(0, ge=0, le=1000)
    n: Whole = Field(1, ge=1, le=16)
    seed: Whole | None = Field(None, ge=-MAX_SEED, le=MAX_SEED)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Real = Field(0.0, ge=0, le=0)
    """Only 0 is served."""
    presence_penalty: Real = Field(0.0, ge=0, le=0)
    response_format: ResponseFormat | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        return refuse_given(values, NOT_SERVED)

    @property
    def stops(self) -> list[str]:
        """Stop strings, at most four."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @model_validator(mode="after")
    def _bounds(self) -> Sampled:
        if len(self.stops) > 4 or any(not stop or len(stop) > 200 for stop in self.stops):
            raise PydanticCustomError("stop", "at most four texts of 1 to 200 characters", {"param": "stop"})
        return self


class Chat(Sampled):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Whole = Field(0, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        """max_completion_tokens goes over max_tokens."""
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _listed(self) -> Chat:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("logprobs", "logprobs must be true for it", {"param": "top_logprobs"})
        return self


class Completion(Sampled):
    """POST /v1/completions"""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = ""
    max_tokens: Whole = Field(16, ge=1)
    logprobs: Whole | None = Field(None, ge=0, le=20)
    echo: Literal[False] = False

    @property
    def limit(self) -> int | None:
        """Tokens to make."""
        return self.max_tokens


class Classify(_Body):
    """POST /v1/classify"""

    model: str = Field(min_length=1, max_length=200)
    input: str | Annotated[list[str], Field(min_length=1, max_length=64)]


class AdapterLoad(_Body):
    """POST /v1/adapters: a name, and a folder under one of the roots given at start."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    path: str = Field(min_length=1, max_length=1000)
