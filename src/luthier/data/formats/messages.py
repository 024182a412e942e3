"""Lists of messages, in OpenAI's form (role, content) and ShareGPT's (from, value), as Turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.core.types import Turn
from luthier.data.formats.fields import Refused, Told, as_text

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip


def conversation(messages: Any, field: str, told: Told) -> list[Turn]:
    """The turns up to the last answer. Refused without any answer, for an unknown role, or for what is not text."""
    if not isinstance(messages, list) or not messages:
        raise Refused(field, "no list of messages", "[{role, content}, …]")
    turns = [_turn(message, f"{field}.{index}", told) for index, message in enumerate(messages)]
    last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0:
        raise Refused(field, "no message of the assistant", "a conversation needs an answer to learn from")
    if last + 1 < len(turns):
        told(field, f"{len(turns) - last - 1} messages after the last answer left out")
    return turns[: last + 1]


def _turn(message: Any, place: str, told: Told) -> Turn:
    if not isinstance(message, Mapping):
        raise Refused(place, "a message that is not an object", "{role, content}")
    role = message.get("role", message.get("from"))
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Refused(f"{place}.role", f"unknown role {role!r}", f"known: {', '.join(sorted(ROLES))}")
    name = "content" if "content" in message else "value" if "value" in message else "content"
    text = _content(message.get(name), f"{place}.{name}", told)
    calls = message.get("tool_calls") or message.get("function_call")
    if calls:
        text = "\n".join([*([text] if text else []), *_calls(calls, place)])
    if not text.strip() and known in ("assistant", "user"):
        raise Refused(f"{place}.{name}", f"an empty message of the {known}", "give the text, or remove the row")
    return Turn(known, text, train=_weight(message, place))


def _content(value: Any, place: str, told: Told) -> str:
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        texts = []
        for part in value:
            if part.get("type", "text") not in ("text", "input_text", "output_text"):
                raise Refused(place, f"a part of type {part.get('type')!r}; only text is trained", "remove the part")
            texts.append(as_text(part.get("text"), place, told) or "")
        return "".join(texts)
    return as_text(value, place, told) or ""


def _calls(calls: Any, place: str) -> list[str]:
    """Tool calls as JSON text, one a line: name and arguments."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise Refused(f"{place}.tool_calls", "a call without a name", "{function: {name, arguments}}")
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                raise Refused(f"{place}.tool_calls", "arguments that are not JSON", "an object as JSON") from None
        found.append(json.dumps({"name": inner["name"], "arguments": arguments}, ensure_ascii=False))
    return found


def _weight(message: Mapping[str, Any], place: str) -> bool | None:
    """OpenAI's `weight`, or `train`: 0 keeps an answer out of the loss."""
    value = message.get("weight", message.get("train"))
    if value is None:
        return None
    if value in (0, 1):
        return bool(value)
    raise Refused(f"{place}.weight", f"a weight of {value!r}", "0 or 1")
