"""FAMILY of templates: the one renderer of training, evaluation and serving; the mask is born with the tokens."""

from __future__ import annotations

from typing import Any

from luthier.core.family import Family

TEMPLATES = Family("templates", __name__)


def choose(name: Any, tokenizer: Any, task: str) -> Any:
    """The template of a name; `auto`: plain for documents and classification, chat where the tokenizer has one."""
    if name != "auto":
        return TEMPLATES.parse(name)
    if task in ("language_model", "classify"):
        return TEMPLATES.parse("plain")
    if getattr(tokenizer, "chat_template", None):
        from luthier.data.templates.chat import Chat

        return Chat.of(tokenizer)
    return TEMPLATES.parse("alpaca")
