"""Tiny models of every architecture, made from configs and saved once per process."""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from luthier.models import anatomy
from luthier.models.base import Base
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings

VOCAB = 96
WINDOW = 64
LABELS = ("no", "yes", "maybe")
SMALL: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _config(kind: str) -> Any:
    import transformers as t

    wide: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **SMALL}
    blocks = {"intermediate_size": 48, "max_position_embeddings": WINDOW, **wide}
    if kind == "llama":
        return t.LlamaConfig(num_key_value_heads=2, **blocks)
    if kind == "qwen3":
        return t.Qwen3Config(num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **blocks)
    if kind == "opt":
        return t.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=WINDOW, dropout=0.0, **wide)
    if kind == "gpt2":
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return t.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=WINDOW, **quiet, **SMALL)
    if kind == "falcon":  # one key and value head for all queries, and no MLP bias; not in KINDS
        return t.FalconConfig(hidden_dropout=0.0, attention_dropout=0.0, **wide)
    if kind == "bert":
        return t.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **blocks)
    if kind == "t5":
        return t.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0, **SMALL
        )
    raise ValueError(kind)


KINDS = ("llama", "qwen3", "opt", "gpt2", "bert", "t5")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable word w0 … w92."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i + 3 for i in range(VOCAB - 3)}}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    )


@functools.cache
def folder(kind: str) -> Path:
    """A saved model; weights are widened, so that attention is far from uniform and mistakes show."""
    import transformers as t

    torch.manual_seed(7)
    config = _config(kind)
    auto = {"bert": t.AutoModelForMaskedLM, "t5": t.AutoModelForSeq2SeqLM}.get(kind, t.AutoModelForCausalLM)
    model = auto.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3 if kind != "t5" else 0.15)
            elif "bias" in name:
                weight.normal_(0, 0.02)
    place = Path(tempfile.mkdtemp(prefix=f"tiny-{kind}-"))
    model.save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@functools.cache
def _loaded(kind: str, head: bool) -> Base:
    task = "classify" if head else "language_model"
    return load_base(ModelSettings(path=str(folder(kind)), device="cpu"), task=task, labels=LABELS, seed=3)


def base(kind: str, classify: bool | None = None) -> Base:
    """A fresh base (a copy of one that was loaded once); BERT always with a head."""
    pristine = _loaded(kind, kind == "bert" if classify is None else classify)
    model = copy.deepcopy(pristine.model)
    return dataclasses.replace(pristine, model=model, anatomy=anatomy.of(model))
