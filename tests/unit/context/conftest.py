"""Tiny Llama-, GPT-2- and OPT-shaped folders with a word tokenizer, made from configs with a window of 64."""

from pathlib import Path

import pytest
import torch

WINDOW = 64
SMALL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def folder_of(kind: str, where: Path) -> Path:
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **SMALL}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    configs = {
        "llama": lambda: t.LlamaConfig(
            num_key_value_heads=2, intermediate_size=48, max_position_embeddings=WINDOW, initializer_range=0.2, **wide
        ),
        "opt": lambda: t.OPTConfig(
            ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=WINDOW, dropout=0.0, **wide
        ),
        "gpt2": lambda: t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=WINDOW, **quiet, **SMALL),
        "bloom": lambda: t.BloomConfig(hidden_size=32, n_layer=1, n_head=2, **SMALL),
    }
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(configs[kind]())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position" in name or "wpe" in name:
                weight.normal_(0, 0.1)
    where.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(where)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i + 3 for i in range(93)}}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    t.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    ).save_pretrained(where)
    return where


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """kind → saved model folder."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = folder_of(kind, root / kind)
        return made[kind]

    return get
