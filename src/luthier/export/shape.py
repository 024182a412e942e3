"""A template as constant text around the turns, so that other programs can build the very same prompt.

    start [default] | system: before, after | user: before, after | assistant: before, after | opening

The parts are read off renderings of a few conversations with marks in place of the texts, then checked on longer
ones. A template whose text around a turn depends on anything else has no shape. Works on characters and on token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.types import Turn
from luthier.data.templates.base import begins_with_bos, tokenize

Part = tuple[Any, ...]
Render = Callable[[Sequence[str]], list[Part]]
"""Roles of a conversation → the constant parts before, between and behind its turns."""
CHECKED = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
)
WITH_SYSTEM = tuple(("system", *roles) for roles in CHECKED)


@dataclass(frozen=True)
class Shape:
    """Constant parts. `default` stands where a conversation has no system message."""

    start: Part
    default: Part
    around: Mapping[str, tuple[Part, Part]]
    opening: Part

    def parts(self, roles: Sequence[str]) -> list[Part]:
        """What the shape says about a conversation, in the form of a rendering."""
        made = [self.start if roles[0] == "system" else self.start + self.default]
        for role in roles:
            before, after = self.around[role]
            made[-1] = made[-1] + before
            made.append(after)
        made[-1] = made[-1] + self.opening
        return made


def find(render: Render, start: Part) -> Shape | None:
    """The shape of a rendering that begins with `start` (the BOS), or None."""
    one, three = render(CHECKED[0]), render(CHECKED[1])
    if one[0][: len(start)] != start or len(one) != 2 or len(three) != 4:
        return None
    head, tail = one[0][len(start) :], one[1]
    user_before = _common_end(head, three[2])
    user_after = _common_start(tail, three[1])
    around = {
        "user": (user_before, user_after),
        "assistant": (three[1][len(user_after) :], _without_end(three[2], user_before)),
    }
    shape = Shape(start, _without_end(head, user_before), around, tail[len(user_after) :])
    with_system = _system(render, shape)
    shape = with_system or shape
    checked = CHECKED + (WITH_SYSTEM if with_system else ())
    return shape if all(shape.parts(roles) == render(roles) for roles in checked) else None


def _system(render: Render, shape: Shape) -> Shape | None:
    from luthier.core.errors import LuthierError

    try:
        found = render(WITH_SYSTEM[0])
    except LuthierError:
        return None
    before, size = shape.around["user"][0], len(shape.start)
    if len(found) != 3 or found[0][:size] != shape.start or found[1][len(found[1]) - len(before) :] != before:
        return None
    around = {**shape.around, "system": (found[0][size:], _without_end(found[1], before))}
    return Shape(shape.start, shape.default, around, shape.opening)


def _common_start(first: Part, other: Part) -> Part:
    size = next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other)))
    return first[:size]


def _common_end(first: Part, other: Part) -> Part:
    return _common_start(first[::-1], other[::-1])[::-1]


def _without_end(whole: Part, end: Part) -> Part:
    return whole[: len(whole) - len(end)]


def _turns(roles: Sequence[str]) -> tuple[list[Turn], list[str]]:
    marks = [f"\ue100{index}\ue101" for index in range(len(roles))]
    return [Turn(role, mark) for role, mark in zip(roles, marks, strict=True)], marks


def _bound(template: Any, tokenizer: Any) -> Any:
    return template.bound(tokenizer) if hasattr(template, "bound") else template


def of_ids(template: Any, tokenizer: Any) -> Shape | None:
    """Parts are token ids, exactly those of the training rows."""
    bound = _bound(template, tokenizer)
    start = tuple(begins_with_bos(tokenizer))
    stop = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id

    def render(roles: Sequence[str]) -> list[Part]:
        turns, marks = _turns(roles)
        made: list[Part] = [start]
        for piece in bound.prompt(turns):
            if piece.text in marks:
                made.append(())
            elif piece.stop:
                made[-1] += (int(stop),)
            else:
                ids = tuple(tokenize(tokenizer, [piece.text], piece.control)[0])
                first = len(made) == 1 and made[0] == start and start and ids[:1] == start
                made[-1] += ids[1:] if first else ids
        return made

    return find(render, start)


def of_text(template: Any, tokenizer: Any) -> Shape | None:
    """Parts are characters; the BOS is `start`, the stop token is written out."""
    bound = _bound(template, tokenizer)
    bos = str(tokenizer.bos_token) if begins_with_bos(tokenizer) else ""
    stop = str(tokenizer.eos_token or tokenizer.sep_token)

    def render(roles: Sequence[str]) -> list[Part]:
        turns, marks = _turns(roles)
        made: list[Part] = [()]
        for piece in bound.prompt(turns):
            if piece.text in marks:
                made.append(())
            else:
                made[-1] += tuple(stop if piece.stop else piece.text)
        if tuple(bos) != made[0][: len(bos)]:
            made[0] = tuple(bos) + made[0]
        return made

    return find(render, tuple(bos))


def jinja(shape: Shape) -> str:
    """The shape as a chat template for transformers, vLLM and others."""
    lines = [f"{{{{- {_quoted(shape.start)} }}}}"] if shape.start else []
    if shape.default:
        lines.append(f"{{%- if messages[0]['role'] != 'system' %}}{{{{- {_quoted(shape.default)} }}}}{{%- endif %}}")
    lines.append("{%- for message in messages %}")
    for number, (role, (before, after)) in enumerate(shape.around.items()):
        word = "if" if number == 0 else "elif"
        said = " + ".join([_quoted(before), "message['content']", _quoted(after)])
        lines.append(f"{{%- {word} message['role'] == '{role}' %}}{{{{- {said} }}}}")
    lines += ["{%- endif %}", "{%- endfor %}"]
    if shape.opening:
        lines.append(f"{{%- if add_generation_prompt %}}{{{{- {_quoted(shape.opening)} }}}}{{%- endif %}}")
    return "\n".join(lines)


def _quoted(part: Part) -> str:
    text = "".join(part).replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{text}'"


def go(shape: Shape) -> str:
    """The shape as a Go template for ollama, which adds the BOS itself."""
    made = ""
    if shape.default:
        made += f"{{{{- if not .System }}}}{_go_text(shape.default)}{{{{ end }}}}"
    made += "{{- range .Messages }}"
    for number, (role, (before, after)) in enumerate(shape.around.items()):
        word = "if" if number == 0 else "else if"
        made += f'{{{{- {word} eq .Role "{role}" }}}}{_go_text(before)}{{{{ .Content }}}}{_go_text(after)}'
    return made + "{{- end }}{{- end }}" + _go_text(shape.opening)


def _go_text(part: Part) -> str:
    import json

    text = "".join(part)
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
