"""The tokenizer of the built-in base: byte-level BPE of about 2,000 pieces, digits one by one, chat tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.models.builtin.corpus import KINDS, Piece, documents, signs, text_of
from luthier.models.builtin.world import people

BEGIN, END, PAD, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BEGIN, END, USER, ASSISTANT)
SIZE = 2176
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>"
    "{{ message['content'] }}<|end|>{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WEIGHTS = {"value": 3.0, "name": 0.2, "": 1.0}
"""Loss weight of a token by the kind of text it belongs to: facts are learnt, names are given."""


def build() -> Any:
    """A `tokenizers.Tokenizer`, trained on the generator's own text (deterministic)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[\u3400-\u9fff]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=60,
    )
    texts = (_without_special(text_of(pieces)) for pieces in documents(people(), 40_000, seed=11))
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
    )
    return made


def _without_special(text: str) -> str:
    for token in SPECIAL:
        text = text.replace(token, " ")
    return text


def encode(
    tokenizer: Any, docs: Sequence[Sequence[Piece]], dropout: float = 0.0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(ids, weights) of each document with BEGIN and END. `dropout`: share of merges left out.

    Documents with broken merges show the model the smaller pieces, which ordinary text hardly holds.
    """
    texts = [text_of(pieces) for pieces in docs]
    tokenizer.model.dropout = dropout or None
    ids, weights = [], []
    end = tokenizer.token_to_id(END)
    for pieces, encoded in zip(docs, tokenizer.encode_batch(texts), strict=True):
        edges = np.cumsum([len(text) for text, _ in pieces])
        kinds = [kind for _, kind in pieces]
        each = []
        for start, stop in encoded.offsets:
            place = int(np.searchsorted(edges, (start + stop) / 2, side="left")) if stop else 0
            each.append(WEIGHTS[kinds[min(place, len(kinds) - 1)]] if stop else 1.0)
        ids.append(np.array([*encoded.ids, end], dtype=np.int32))
        weights.append(np.array([*each, 1.0], dtype=np.float32))
    tokenizer.model.dropout = None
    return ids, weights


def check(tokenizer: Any, counts: np.ndarray, least: int = 50) -> None:
    """ValueError when a piece that ordinary text is made of was trained on fewer than `least` times.

    Low-rank tuning with frozen, tied embeddings cannot produce a token that the base never saw.
    """
    words = [kind for kind in KINDS if kind[0] is not signs]
    plain, _ = encode(tokenizer, list(documents(people(), 30_000, seed=12, kinds=words)))
    used = np.zeros(len(counts), dtype=bool)
    used[np.concatenate(plain)] = True
    rare = {tokenizer.id_to_token(int(i)): int(counts[i]) for i in np.flatnonzero(used & (counts < least))}
    if rare:
        raise ValueError(f"pieces seen fewer than {least} times: {rare}")


def wrap(tokenizer: Any) -> Any:
    """As a transformers tokenizer, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = CHAT
    return made
