"""A model folder that is asked in the way it was trained: chat template, stop tokens, generation settings."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.types import Turn

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.core.types import Example

PROBES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hello"),),
    (("user", "Where does Ada Lovelace live, and since when?"),),
    (("user", "你好，请用一句话介绍北京。"),),
    (("user", "a\n\nb  c\t1,234.5"),),
    (("user", "Name three colours."), ("assistant", "red, green, blue"), ("user", "And a fourth?")),
    (("system", "Answer briefly."), ("user", "What is 12 + 30?")),
)
MOST_EXAMPLES = 32


def talks(adapted: AdaptedModel) -> bool:
    """Whether the model answers prompts (not labels, not unfinished documents)."""
    return not adapted.task.has_head and adapted.task.name != "language_model"


def chat_template(adapted: AdaptedModel) -> str | None:
    """Jinja source of the training template, where it can be written so."""
    from luthier.export import shape

    bound = adapted.template
    if hasattr(bound, "bound"):
        bound = bound.bound(adapted.base.tokenizer)
    if source := getattr(bound.params, "source", ""):
        return str(source)
    found = shape.of_text(bound, adapted.base.tokenizer)
    return shape.jinja(found) if found else None


def make_it_speak(adapted: AdaptedModel, folder: Path, examples: Sequence[Example] = ()) -> dict[str, Any]:
    """Put template and stop tokens into a model folder, and count how often plain transformers builds the prompt
    with the very ids of training: {"template": {"prompts", "equal_ids"}}."""
    from transformers import AutoTokenizer

    from luthier.export.readers import older_tokenizer

    if adapted.task.has_head:
        return {}
    write_generation_config(adapted, folder)
    if not talks(adapted):
        return {}
    tokenizer = copy.deepcopy(adapted.base.tokenizer)
    source = chat_template(adapted)
    tokenizer.chat_template = source  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)
    older_tokenizer(folder / "tokenizer_config.json")
    if source is None:
        return {"template": {"prompts": 0, "equal_ids": 0, "note": "cannot be written as a chat template"}}
    written = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return compared(adapted, written, examples)


def compared(adapted: AdaptedModel, tokenizer: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """How many prompts this tokenizer's chat template builds as training did: {"template": {"prompts", "equal_ids"}}.

    Apart from them (`others`): prompts with material beside the instruction, which a message has no place for, and
    texts that hold a control token's name, which transformers' chat templates cannot keep a text.
    """
    names = set(tokenizer.all_special_tokens) | {str(token) for token in getattr(tokenizer, "extra_special_tokens", ())}
    counts = {True: [0, 0], False: [0, 0]}
    for turns in conversations(adapted, examples):
        plain = not any(turn.context or any(name in turn.text for name in names) for turn in turns)
        counts[plain][0] += 1
        counts[plain][1] += ids_by_template(tokenizer, turns) == adapted.prompt_ids(turns)
    made: dict[str, Any] = dict(zip(("prompts", "equal_ids"), counts[True], strict=True))
    if counts[False][0]:
        made["others"] = dict(zip(("prompts", "equal_ids"), counts[False], strict=True))
    return {"template": made}


def gated(found: Mapping[str, Any]) -> dict[str, Any]:
    """A certificate that does not pass where a prompt was built with other ids than in training."""
    made = dict(found)
    template = made.get("template") or {}
    others = template.get("prompts", 0) - template.get("equal_ids", 0)
    if others:
        told = f"{others} of {template['prompts']} prompts have other ids through the chat template"
        made |= {"passed": False, "reason": "; ".join(filter(None, [made.get("reason"), told]))}
    return made


def conversations(adapted: AdaptedModel, examples: Sequence[Example]) -> list[tuple[Turn, ...]]:
    """Fixed prompts and held-out ones; those that the template itself refuses (a system message) are left out."""
    from luthier.core.errors import LuthierError

    wanted = [tuple(Turn(role, text) for role, text in probe) for probe in PROBES]
    wanted += [tuple(examples[index].prompt) for index in range(min(MOST_EXAMPLES, len(examples)))]
    kept = []
    for turns in wanted:
        try:
            adapted.prompt_ids(turns)
        except LuthierError:
            continue
        kept.append(turns)
    return kept


def ids_by_template(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """What apply_chat_template makes of a conversation; nothing where it refuses it."""
    from jinja2 import TemplateError

    from luthier.data.templates.base import joined

    messages = [{"role": turn.role, "content": joined(turn)} for turn in turns]
    try:
        made = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError:
        return []
    return [int(token) for token in made]


def write_generation_config(adapted: AdaptedModel, folder: Path) -> None:
    """Stop tokens, pad, greedy: what the answers of the report were made with."""
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    stop = list(adapted.base.stop_ids)
    settings |= {"eos_token_id": stop, "pad_token_id": int(adapted.base.pad_id), "do_sample": False}
    for key in ("temperature", "top_p", "top_k"):
        settings.pop(key, None)
    file.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
