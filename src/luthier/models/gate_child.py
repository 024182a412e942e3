"""What the gate does with tokenizers, templates and patterns; only ever called in a limited child process.

Imports nothing of the model libraries but `tokenizers` and `jinja2`, so that the child starts in a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Tell = Callable[[str], None]
PROBES = (
    "Hello, world! 1234567890",
    "你好，世界。模型微调",
    "a" * 4000,
    " " * 2000 + "\n\t" * 500,
    "1" * 1000 + "!?" * 500,
    "\u0000\ufffd\U0001f600 é ñ ß",
)
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
)
MOST_TEXT = 1 << 20


def inspect(payload: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Everything of one folder in one child: `tokenizer` (a path) and `templates` (texts)."""
    found: dict[str, Any] = {}
    if payload.get("tokenizer"):
        tell("tokenizer.json")
        found = tokenizer(payload["tokenizer"])
    for text in payload.get("templates", ()):
        tell("chat template")
        template(text)
    return found


def tokenizer(path: str) -> dict[str, Any]:
    """Load, encode the probes, decode; ids must be inside the vocabulary and belong to one token each."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(path)
    size = made.get_vocab_size(with_added_tokens=True)
    ids = list(made.get_vocab(with_added_tokens=True).values())
    if len(set(ids)) != len(ids):
        raise ValueError("two tokens have the same id")
    largest = max(ids, default=-1)
    if largest > 2 * size + 65536:
        raise ValueError(f"it has {size} tokens, but the id {largest}")
    for probe in PROBES:
        encoded = made.encode(probe, add_special_tokens=False).ids
        if encoded and max(encoded) > largest:
            raise ValueError("it gives ids outside of its vocabulary")
        made.decode(encoded)
    return {"size": size, "largest": largest}


def template(text: str) -> None:
    """Render the probe conversations in the sandbox. A template may refuse a conversation by raise_exception."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Refused(TemplateError):
        """The template's own refusal."""

    class Generation(Extension):
        """`{% generation %}` marks the answer for other tools; here only its body counts."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise Refused(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: "2024-01-01"
    made = environment.from_string(text)
    for messages in CONVERSATIONS:
        for opened in (False, True):
            size = 0
            try:
                for part in made.generate(
                    messages=messages, add_generation_prompt=opened, bos_token="<s>", eos_token="</s>", tools=None
                ):
                    size += len(part)
                    if size > MOST_TEXT:
                        raise ValueError("it writes more than a megabyte for two short turns")
            except Refused:
                continue
            except SecurityError as error:
                raise ValueError(f"it reaches for {error}") from None


def patterns(payload: dict[str, Any], tell: Tell) -> int:
    """How often the patterns match the names: proves that they are cheap on the very names they will be used on,
    in each of the three ways in which PEFT uses patterns."""
    matched = 0
    for text in payload["patterns"]:
        tell(text[:80])
        for form in (rf"(?:{text})\Z", rf"(.*\.)?({text})$", rf".*\.{text}\.(\d+)\."):
            made = re.compile(form)
            matched += sum(made.match(name) is not None for name in payload["names"])
    return matched
