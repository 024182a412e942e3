"""Jinja under limits: no attribute tricks, no huge ranges or powers, bounded output and bounded steps."""

from __future__ import annotations

import sys
import time
from functools import lru_cache
from types import FrameType
from typing import Any

from luthier.core.errors import ModelError

SECONDS, MOST_CHARACTERS, MOST_SOURCE = 2.0, 1 << 20, 200_000


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """Without the operators that make gigabytes out of three characters."""

        intercepted_binops = frozenset(["**", "*", "<<"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(v) if isinstance(v, str | list | tuple) else abs(v) for v in (left, right)]
            if operator != "*" or sizes[0] * sizes[1] > MOST_CHARACTERS:
                raise TemplateError(f"{operator} is not allowed here")
            return left * right

    if len(source) > MOST_SOURCE:
        raise ModelError("the chat template is too long", where="chat_template")
    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: time.strftime(pattern, time.gmtime(0))
    environment.filters["tojson"] = _to_json
    return environment.from_string(source)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, **{k: v for k, v in options.items() if k == "indent"})


def render_bounded(source: str, messages: list[dict[str, str]], opened: bool, bos: str, eos: str) -> str:
    """The rendering; a trace hook ends a template that runs longer than two seconds."""
    from jinja2 import TemplateError

    until = time.monotonic() + SECONDS

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > until:
            raise TemplateError("the template takes too long")
        return watch

    parts, size, before = [], 0, sys.gettrace()
    try:
        template = _compiled(source)
        stream = template.generate(messages=messages, add_generation_prompt=opened, bos_token=bos, eos_token=eos)
        sys.settrace(watch)
        for part in stream:
            size += len(part)
            if size > MOST_CHARACTERS:
                raise TemplateError("the template writes too much")
            parts.append(part)
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"the chat template fails: {error}", where="chat_template", remedy="template: alpaca"
        ) from None
    finally:
        sys.settrace(before)
    return "".join(parts)
