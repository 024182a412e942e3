"""A language model that rewrites texts: an OpenAI-compatible endpoint, or a model in a local folder.

Requests are bounded in number, time and size, tried again when the server is busy, and answered from the cache
when the same text was rewritten in the same way before, so that a resumed run trains on the same rows.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib import error, request

import numpy as np
from pydantic import Field, model_validator

from luthier.core.errors import DataError
from luthier.core.fingerprint import of_value
from luthier.core.settings import Settings
from luthier.data import language, words

LARGEST = 1 << 20
"""Bytes of an answer that are read."""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
SHORTEST, LONGEST = 0.3, 3.0
"""A rewritten text outside of these shares of the old length has lost or gained content."""


class _Straight(request.HTTPRedirectHandler):
    """Redirects are refused: the key would go to whoever the server names."""

    def redirect_request(self, *_: Any) -> None:
        """Never."""


_OPENER = request.build_opener(_Straight)


class RewriterParams(Settings):
    """Which model, and how it is asked."""

    model: str = ""
    """A local folder (or builtin); with `endpoint`, the model's name there."""
    endpoint: str = ""
    """Base address of an OpenAI-compatible server: https://host/v1. Texts are sent there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key; it is never stored."""
    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(512, gt=0)
    timeout: float = Field(60, gt=0)
    """Seconds a request."""
    tries: int = Field(4, gt=0, le=10)
    limit: int = Field(10_000, gt=0)
    """Requests in all; texts beyond it stay as they are, and are counted."""
    cache: str | None = None
    """Folder in which rewritten texts are kept; the run's own folder when empty."""
    ratio: float = Field(1.0, gt=0, le=10)
    """New rows for each training row."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if not self.model and not self.endpoint:
            raise ValueError("give model: a local folder, or endpoint: an OpenAI-compatible server")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint must begin with http:// or https://")
        if not self.endpoint and self.model != "builtin" and not Path(self.model).expanduser().is_dir():
            raise ValueError(f"there is no model folder {self.model!r}; nothing is downloaded for augmentation")
        return self


class Rewriter:
    """`ask(prompt, seed)` gives the model's answer."""

    def __init__(self, params: RewriterParams, where: str):
        self.params, self.where = params, where
        self.requests = 0
        self._known: dict[str, str] = {}
        self._file: Path | None = None
        self._local: Callable[[str, int], str] | None = None
        if params.cache:
            self.remember(Path(params.cache).expanduser())

    def remember(self, folder: Path) -> None:
        """Keep answers in this folder, unless the recipe names another one."""
        if self._file is not None:
            return
        self._file = folder / "rewritten.jsonl"
        for line in self._file.read_text("utf-8").splitlines() if self._file.is_file() else ():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["text"]
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run

    def ask(self, prompt: str, seed: int) -> str | None:
        """The answer, or None when the limit of requests is reached. DataError when the model cannot be asked."""
        shown = self.params.model_dump(include={"model", "endpoint", "temperature", "max_tokens"})
        key = of_value([shown, prompt, seed])
        if key not in self._known:
            if self.requests >= self.params.limit:
                return None
            self.requests += 1
            self._known[key] = self._remote(prompt, seed) if self.params.endpoint else self._here(prompt, seed)
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with open(self._file, "a", encoding="utf-8") as handle:
                    handle.write(json.dumps({"key": key, "text": self._known[key]}) + "\n")
        return self._known[key]

    def _remote(self, prompt: str, seed: int) -> str:
        body = {
            "model": self.params.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.params.temperature,
            "max_tokens": self.params.max_tokens,
            "seed": seed % 2**31,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.params.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        address = self.params.endpoint.rstrip("/") + "/chat/completions"
        asked = request.Request(address, json.dumps(body).encode(), headers, method="POST")
        for attempt in range(self.params.tries):
            try:
                with _OPENER.open(asked, timeout=self.params.timeout) as answer:
                    return _content(json.loads(answer.read(LARGEST)))
            except error.HTTPError as failed:
                reason = f"HTTP {failed.code} {failed.reason}"
                if failed.code not in BUSY:
                    break
            except (OSError, ValueError, KeyError, IndexError, TypeError) as failed:
                reason = str(failed) or type(failed).__name__
            time.sleep(min(8.0, 0.25 * 2**attempt))
        raise DataError(
            f"{address} does not answer: {reason}",
            where=self.where,
            remedy="start the server, or remove this augmenter",
        )

    def _here(self, prompt: str, seed: int) -> str:
        if self._local is None:
            self._local = _load(self.params)
        return self._local(prompt, seed)


def _content(answer: Any) -> str:
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("the answer holds no text")
    return text


def _load(params: RewriterParams) -> Callable[[str, int], str]:
    """A function that answers with the model of a local folder."""
    from luthier.core.types import Turn
    from luthier.data import templates
    from luthier.models import decode
    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    base = load_base(ModelSettings(path=params.model))
    template = templates.choose("auto", base.tokenizer, "instruct")

    class Untouched:
        """The base without an adapter."""

        def __init__(self) -> None:
            self.base = base

        def virtual(self, batch: Any) -> None:
            """No virtual tokens."""

    def answer(prompt: str, seed: int) -> str:
        ids = template.prompt_ids([Turn("user", prompt)], base.tokenizer)
        made = decode.generate(
            Untouched(), [ids], max_new_tokens=params.max_tokens, stop_ids=base.stop_ids,
            temperature=params.temperature, seed=seed,
        )  # fmt: skip
        new = [token for token in made[0].ids if token not in base.stop_ids]
        return decode.text_of(base.tokenizer, ids, new)

    return answer


def accepted(old: str, new: str | None) -> str | None:
    """The new text if it can stand for the old one: in the same language, with the same numbers, of a like length."""
    if new is None:
        return None
    text = new.strip().strip('"“”').strip()
    if not text or text == old.strip():
        return None
    if not SHORTEST * len(old) <= len(text) <= LONGEST * len(old) + 20:
        return None
    if kept(old) != kept(text) or language.of_text(old) != language.of_text(text):
        return None
    return text


def kept(text: str) -> list[str]:
    """What a rewriting must leave alone: numbers, and tokens that look like code or control tokens."""
    pieces = [piece for piece in words.split(text) if not piece.isspace() and not words.is_word(piece)]
    return sorted(
        piece.strip(".,;:!?，。；：！？、") for piece in pieces if any(c.isdigit() or c == "<" for c in piece)
    )


def drawn(source: np.random.Generator) -> int:
    """A seed of this row."""
    return int(source.integers(2**31))
