"""The tokenizer of a base, its pad token and its stop tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.errors import ModelError


def load_tokenizer(folder: Path, model: Any) -> tuple[Any, int, tuple[int, ...]]:
    """(tokenizer, pad id, stop ids). The first stop id is the one that is trained at the end of an answer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the tokenizer does not load: {error}", where=str(folder), remedy="check tokenizer.json"
        ) from None
    size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the embeddings only {size} rows",
            where=str(folder),
            remedy="this tokenizer belongs to another model",
        )
    stops = stop_ids(tokenizer, folder)
    return tokenizer, pad_id(tokenizer, stops), stops


def stop_ids(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """The tokenizer's EOS first, then what generation_config.json adds."""
    found: list[int] = []
    if tokenizer.eos_token_id is not None:
        found.append(int(tokenizer.eos_token_id))
    elif getattr(tokenizer, "sep_token_id", None) is not None:
        found.append(int(tokenizer.sep_token_id))
    file = folder / "generation_config.json"
    if file.is_file():
        listed = json.loads(file.read_text("utf-8")).get("eos_token_id")
        listed = listed if isinstance(listed, list) else [listed]
        found += [int(value) for value in listed if value is not None]
    if not found:
        raise ModelError("neither tokenizer nor generation_config.json names an end-of-text token", where=str(folder))
    return tuple(dict.fromkeys(found))


def pad_id(tokenizer: Any, stops: tuple[int, ...]) -> int:
    """The tokenizer's pad; else its unknown token; else a stop token, which is safe here: masks never look at ids."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    chosen = tokenizer.unk_token if tokenizer.unk_token_id is not None else tokenizer.convert_ids_to_tokens(stops[0])
    tokenizer.pad_token = chosen
    made: Any = tokenizer.pad_token_id
    return int(made)
