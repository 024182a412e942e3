"""From a validated request to an answer, whole or streamed, with the artefact's own template and stop tokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from luthier.core.errors import LuthierError
from luthier.core.types import Turn
from luthier.serve.adapters import Served
from luthier.serve.constrained import Grammar, grammar
from luthier.serve.request import Request, Sampling, Token
from luthier.serve.schema import ApiError, Chat, Completion, Sampled, ignored
from luthier.serve.text import Stream

if TYPE_CHECKING:
    from luthier.serve.app import Server

DEFAULT_NEW_TOKENS = 256
TOKENIZING = threading.Lock()
"""Whether control tokens mean themselves is a mode of the tokenizer, which requests share: one prompt at a time."""


@dataclass
class Job:
    """Everything that one HTTP request asks of the engine: prompts × n answers."""

    served: Served
    prompts: list[list[int]]
    body: Sampled
    limits: list[int]
    chat: bool
    logprobs: int = -1
    grammar: Grammar | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def count(self) -> int:
        """Answers to make."""
        return len(self.prompts) * self.body.n


def _speaking(server: Server, name: str) -> Served:
    """The model of that name; ApiError for one that gives labels and no text."""
    served = server.registry.get(name)
    if served.base.kind == "encoder" or (served.adapted is not None and served.adapted.task.has_head):
        raise ApiError(400, f"{name} gives labels, not text; use /v1/classify", "wrong_endpoint", "model")
    return served


def chat_job(server: Server, body: Chat) -> Job:
    """Messages through the template of the model that is asked."""
    served = _speaking(server, body.model)
    roles = {"developer": "system"}
    turns = tuple(Turn(roles.get(m.role, m.role), m.text) for m in body.messages)
    template = _template(server, served)
    if not _knows_tools(template, served.base.tokenizer):
        at = next((str(at) for at, message in enumerate(body.messages) if message.role == "tool"), "")
        if at:
            what = "the template of this model has no place for results of tools"
            raise ApiError(400, what, "invalid_messages", f"messages.{at}.role")
    ids = _prompt_ids(template, turns, served.base.tokenizer)
    wanted = body.top_logprobs if body.logprobs else -1
    limits = [_limit(server, served, ids, body.limit)]
    return Job(served, [list(ids)], body, limits, True, wanted, grammar(served, body.response_format))


def _knows_tools(template: Any, tokenizer: Any) -> bool:
    """Whether results of tools have a form of their own: alpaca's `### Input`, a chat template that names the role."""
    if template.name != "chat":
        return bool(template.name == "alpaca")
    return re.search(r"""['"]tool['"]""", template.bound(tokenizer).params.source) is not None


def _prompt_ids(template: Any, turns: tuple[Turn, ...], tokenizer: Any) -> list[int]:
    """ApiError for a conversation that the template does not know (some have no system message)."""
    try:
        with TOKENIZING:
            return list(template.prompt_ids(turns, tokenizer))
    except LuthierError as error:
        raise ApiError(
            400, f"the template refuses these messages: {error.what}", "invalid_messages", "messages"
        ) from None


def completion_job(server: Server, body: Completion) -> Job:
    """Plain text or token ids, without any template."""
    from luthier.data.templates.base import begins_with_bos, tokenize

    served = _speaking(server, body.model)
    tokenizer = served.base.tokenizer
    given: list[Any] = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    if given and isinstance(given[0], int):
        given = [given]
    if len(given) > 16:
        raise ApiError(400, "at most 16 prompts", "too_many_prompts", "prompt")
    if given and isinstance(given[0], list):
        words: Any = served.base.model.get_input_embeddings()
        size = int(words.weight.shape[0])
        if any(not 0 <= token < size for ids in given for token in ids):
            raise ApiError(400, "a token id is outside of the vocabulary", "invalid_token", "prompt")
        prompts = given
    else:
        with TOKENIZING:
            bos = begins_with_bos(tokenizer)
            found = tokenize(tokenizer, [t.encode("utf-8", "replace").decode() for t in given], False)
        prompts = [bos + ids for ids in found]
    if not prompts or any(not ids for ids in prompts):
        raise ApiError(400, "the prompt is empty", "empty_prompt", "prompt")
    limits = [_limit(server, served, ids, body.limit) for ids in prompts]
    wanted = -1 if body.logprobs is None else body.logprobs
    return Job(served, prompts, body, limits, False, wanted, grammar(served, body.response_format))


def _template(server: Server, served: Served) -> Any:
    from luthier.data.templates import choose

    if served.adapted is not None:
        return served.adapted.template
    return server.registry.template or choose("auto", served.base.tokenizer, "instruct")


def _limit(server: Server, served: Served, ids: list[int], wanted: int | None) -> int:
    window = server.worker.engine.window
    room = window - served.virtual_tokens - len(ids)
    if room < 1 or (wanted or 1) > room:
        raise ApiError(
            400,
            f"{len(ids)} prompt tokens, {served.virtual_tokens} virtual ones and {wanted or 1} new ones do not fit "
            f"the window of {window}",
            "context_length_exceeded",
            "max_tokens",
        )
    return wanted or min(room, DEFAULT_NEW_TOKENS)


class _Answer:
    """One answer in the making: tokens come from the model thread, text goes to the client."""

    def __init__(self, server: Server, job: Job, prompt: int, number: int, loop: asyncio.AbstractEventLoop):
        self.index = prompt * job.body.n + number
        self.queue: asyncio.Queue[Token] = asyncio.Queue()
        self._loop = loop
        ids = job.prompts[prompt]
        self.text = Stream(job.served.base.tokenizer, ids, job.body.stops)
        self.tokens = 0
        self.finish: str | None = None
        self.logprobs: list[dict[str, Any]] = []
        self._told, self._offset = 0, 0
        seed = job.body.seed if job.body.seed is not None else int.from_bytes(uuid.uuid4().bytes[:6], "big")
        sampling = Sampling(
            job.body.temperature,
            job.body.top_p,
            job.body.top_k,
            (seed + number) % 2**63,
            job.limits[prompt],
            job.logprobs,
        )
        self.request = Request(
            job.served,
            ids,
            sampling,
            self._arrive,
            frozenset(job.served.base.stop_ids),
            deadline=time.monotonic() + server.limits.deadline_s,
            walk=None if job.grammar is None else job.grammar.walk(),
        )
        self._tokenizer = job.served.base.tokenizer

    def _arrive(self, token: Token) -> None:
        """Called by the model thread; a loop that is closed has nobody who waits."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.queue.put_nowait, token)

    async def deltas(self) -> AsyncIterator[str]:
        """Text as it comes; sets `finish`. ApiError when the engine failed."""
        while True:
            token = await self.queue.get()
            if token.id is None:
                if token.finish == "error":
                    raise ApiError(500, f"generation failed: {token.error}", "generation_failed")
                raise ApiError(504, token.error or "cancelled", "cancelled")
            self.tokens += 1
            self._note(token)
            fresh = "" if token.id in self.request.stop_ids else self.text.push(token.id)
            if self.text.stopped:
                self.request.cancelled = True
                self.finish = "stop"
            elif token.finish:
                fresh += self.text.end()
                self.finish = token.finish
            if fresh:
                yield fresh
            if self.finish:
                return

    def _note(self, token: Token) -> None:
        if token.logprob is None or token.id is None:
            return

        def entry(number: int, value: float) -> dict[str, Any]:
            text = str(self._tokenizer.decode([number]))
            return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}

        listed = [entry(number, value) for number, value in token.alternatives]
        self.logprobs.append({**entry(token.id, token.logprob), "top_logprobs": listed})

    def fresh_logprobs(self, chat: bool) -> dict[str, Any] | None:
        """Those of the tokens since the last call, in the shape of the route; None where none were asked for."""
        if self.request.sampling.logprobs < 0:
            return None
        new, self._told = self.logprobs[self._told :], len(self.logprobs)
        if chat:
            return {"content": new, "refusal": None}
        offsets = []
        for one in new:
            offsets.append(self._offset)
            self._offset += len(one["token"])
        return {
            "tokens": [one["token"] for one in new],
            "token_logprobs": [one["logprob"] for one in new],
            "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in new],
            "text_offset": offsets,
        }


class EventStream(StreamingResponse):
    """Server-sent events that leave the server tidy however they end, even before the first one."""

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None], headers: dict[str, str]):
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send, then leave."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def respond(server: Server, http: HttpRequest, job: Job) -> Response:
    """Admit, submit, and answer whole or as a stream; slots are freed whatever happens."""
    stack = contextlib.ExitStack()
    stack.enter_context(server.admitted(job.count))
    handed_over = False
    try:
        loop = asyncio.get_running_loop()
        pairs = [(prompt, number) for prompt in range(len(job.prompts)) for number in range(job.body.n)]
        answers = [_Answer(server, job, prompt, number, loop) for prompt, number in pairs]
        stack.callback(_cancel, server, answers)
        for answer in answers:
            server.worker.submit(answer.request)
        if job.body.stream:
            handed_over = True
            return EventStream(_stream(job, answers), stack.close, _headers(job))
        return JSONResponse(_whole(job, answers, await _unless_gone(http, answers)), headers=_headers(job))
    finally:
        if not handed_over:
            stack.close()


async def _unless_gone(http: HttpRequest, answers: list[_Answer]) -> list[str]:
    """The texts; ApiError when nobody waits for them any more."""
    gone, work = asyncio.create_task(_gone(http)), asyncio.create_task(_collect(answers))
    try:
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(400, "the client went away", "client_closed")
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


def _cancel(server: Server, answers: list[_Answer]) -> None:
    for answer in answers:
        answer.request.cancelled = True
    server.worker.wake()


def _headers(job: Job) -> dict[str, str]:
    return {"Cache-Control": "no-cache", **ignored(job.body)}


async def _collect(answers: list[_Answer]) -> list[str]:
    async def one(answer: _Answer) -> str:
        return "".join([part async for part in answer.deltas()])

    return list(await asyncio.gather(*(one(answer) for answer in answers)))


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _usage(job: Job, answers: list[_Answer]) -> dict[str, Any]:
    asked, made = sum(map(len, job.prompts)), sum(answer.tokens for answer in answers)
    reused = sum(answer.request.reused for answer in answers)
    total = {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
    return {**total, "prompt_tokens_details": {"cached_tokens": min(reused, asked)}}


def _head(job: Job, chunk: bool) -> dict[str, Any]:
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if job.chat else "text_completion"
    prefix = "chatcmpl" if job.chat else "cmpl"
    return {"id": f"{prefix}-{job.id}", "object": kind, "created": job.created, "model": job.body.model}


def _whole(job: Job, answers: list[_Answer], texts: list[str]) -> dict[str, Any]:
    choices = []
    for answer, text in zip(answers, texts, strict=True):
        logs = answer.fresh_logprobs(job.chat)
        body = {"message": {"role": "assistant", "content": text, "refusal": None}} if job.chat else {"text": text}
        choices.append({"index": answer.index, **body, "logprobs": logs, "finish_reason": answer.finish})
    return {**_head(job, False), "choices": choices, "usage": _usage(job, answers)}


async def _stream(job: Job, answers: list[_Answer]) -> AsyncIterator[str]:
    """Server-sent events: role, deltas, finish; usage when asked; an error is one data line."""
    wants_usage = bool(job.body.stream_options and job.body.stream_options.include_usage)
    merged: asyncio.Queue[tuple[_Answer, str | None, ApiError | None]] = asyncio.Queue()

    async def pump(answer: _Answer) -> None:
        try:
            async for part in answer.deltas():
                merged.put_nowait((answer, part, None))
            merged.put_nowait((answer, None, None))
        except ApiError as error:
            merged.put_nowait((answer, None, error))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # tokenizers panic with a BaseException; the client must not wait for ever
            broken = ApiError(500, f"generation failed: {type(error).__name__}", "generation_failed")
            merged.put_nowait((answer, None, broken))

    tasks = [asyncio.create_task(pump(answer)) for answer in answers]
    try:
        if job.chat:
            for answer in answers:
                yield _event(job, answer, {"role": "assistant", "content": ""}, None, wants_usage)
        left = len(answers)
        while left:
            answer, part, error = await merged.get()
            if error is not None:
                yield f"data: {json.dumps(error.body())}\n\n"
                return
            if part is None:
                left -= 1
                yield _event(job, answer, {}, answer.finish, wants_usage)
            else:
                yield _event(job, answer, {"content": part}, None, wants_usage)
        if wants_usage:
            yield f"data: {json.dumps({**_head(job, True), 'choices': [], 'usage': _usage(job, answers)})}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()


def _event(job: Job, answer: _Answer, delta: dict[str, Any], finish: str | None, wants_usage: bool) -> str:
    logs = answer.fresh_logprobs(job.chat) if "role" not in delta else None
    choice: dict[str, Any] = {"index": answer.index, "logprobs": logs, "finish_reason": finish}
    choice |= {"delta": delta} if job.chat else {"text": delta.get("content", "")}
    made = {**_head(job, True), "choices": [choice], **({"usage": None} if wants_usage else {})}
    return f"data: {json.dumps(made, ensure_ascii=False)}\n\n"
