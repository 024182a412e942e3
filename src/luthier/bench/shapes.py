"""Model shapes by name: (architecture, configuration). Weights are random, so nothing is downloaded.

llama1b, llama3b and llama8b have the published sizes of Llama 3.2 1B, 3.2 3B and 3.1 8B. They are for a GPU and **were
not measured**: none was at hand.
"""

from __future__ import annotations

from typing import Any


def _llama(hidden: int, wide: int, layers: int, heads: int, kv_heads: int, tied: bool) -> tuple[str, dict[str, Any]]:
    options = {
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
    }
    return "llama", options


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama25m": (
        "llama",
        {
            "vocab_size": 16384,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
    "opt125m": (
        "opt",
        {
            "vocab_size": 50272,
            "hidden_size": 768,
            "ffn_dim": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "word_embed_proj_dim": 768,
            "max_position_embeddings": 2048,
            "dropout": 0.0,
        },
    ),
    "llama1b": _llama(2048, 8192, 16, 32, 8, True),
    "llama3b": _llama(3072, 8192, 28, 24, 8, True),
    "llama8b": _llama(4096, 14336, 32, 32, 8, False),
    "tiny": (
        "llama",
        {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
}
"""`tiny` is for tests."""
