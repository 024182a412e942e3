"""A byte-level BPE tokenizer as GGUF holds it: tokens, types, merges, and the name of a way to cut text into words.

llama.cpp knows only named ways. Each is rebuilt here from its regular expression; a tokenizer is taken only where one
of them gives the very ids of the original on every probe text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import ModelError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WAYS: dict[str, tuple[str | None, bool, bool]] = {
    "gpt-2": (None, True, False),
    "starcoder": (r"\p{N}", True, False),
    "llama-bpe": (_LLAMA3, False, True),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), False, False),
}
"""llama.cpp's name → (a cut before anything else, GPT-2's expression after it, whole words first)."""
PROBES = (
    "Hello world",
    "don't I'LL we've  two  spaces\n\nand lines\r\n\ttabs ",
    "abc123 4567 8,901.5 1st 2nd ²½Ⅷ",
    "中文字符和 English 混排，2024年12月！《书名》",
    " 中 文 — “引号”…",
    "かな カナ 한국어 العربية हिन्दी",
    "🙂👩‍👩‍👧 e\u0301 \u00a0 <|x|> ### a_b->c(){}[];",
)


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the file."""

    way: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    compared: int
    """Texts on which the ids were compared; all were equal."""


def read(tokenizer: Any, size: int, texts: Iterable[str]) -> Vocabulary:
    """The vocabulary with `size` rows (the embeddings may have more rows than the tokenizer tokens)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = json.loads(backend.to_str()) if backend is not None else {}
    model = facts.get("model") or {}
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(facts.get("pre_tokenizer")):
        raise _refused("it is not a byte-level BPE tokenizer")
    if facts.get("normalizer") or model.get("byte_fallback") or model.get("unk_token"):
        raise _refused("it normalises texts, or has an unknown token or byte fallback")
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    probes = [*PROBES, *texts]
    way = next((name for name in WAYS if _same(tokenizer, _rebuilt(name, model["vocab"], merges), probes)), None)
    if way is None:
        raise _refused(f"llama.cpp has no equal way of cutting text into words (tried {', '.join(WAYS)})")
    tokens, types = _tokens(facts, model["vocab"], size)
    return Vocabulary(way, tokens, types, [" ".join(pair) for pair in merges], len(probes))


def _refused(why: str) -> ModelError:
    return ModelError(
        f"GGUF cannot hold this tokenizer faithfully: {why}", where="tokenizer", remedy="--as merged or bundle"
    )


def _rebuilt(name: str, vocabulary: dict[str, int], merges: Sequence[Any]) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    first, gpt2, whole = WAYS[name]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=whole))
    steps: list[Any] = [pre_tokenizers.Split(Regex(first), "isolated")] if first else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return made


def _same(tokenizer: Any, other: Any, texts: Sequence[str]) -> bool:
    options = {"add_special_tokens": False, "split_special_tokens": True}
    return all(list(tokenizer(text, **options).input_ids) == other.encode(text).ids for text in texts)


def _tokens(facts: dict[str, Any], vocabulary: dict[str, int], size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for text, index in vocabulary.items():
        tokens[index], types[index] = text, NORMAL
    for added in facts.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, types
