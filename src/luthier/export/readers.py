"""A model folder that older programs read too: what transformers 5 writes in new words is said in those of 4 as well.

transformers 4 (and what builds on it: older vLLM, converters) knows no `TokenizersBackend`, wants a mapping in
`extra_special_tokens`, takes its rope base from the top of config.json (silently 10000 where none stands there) and
its dtype from `torch_dtype`. transformers 5 reads both; a rewritten file that it would read otherwise is put back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OLD_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""Where transformers 4 called a rope parameter otherwise."""
LOCAL_KEYS = ("is_local", "local_files_only")
"""How this process happened to open the tokenizer; no property of it."""


def for_older_readers(folder: Path) -> None:
    """Add transformers 4's words to config.json and tokenizer_config.json of `folder`, where it has them."""
    if (folder / "config.json").is_file():
        older_config(folder / "config.json")
    if (folder / "tokenizer_config.json").is_file():
        older_tokenizer(folder / "tokenizer_config.json")


def older_config(file: Path) -> bool:
    """Whether the words of transformers 4 were added: not where transformers 5 would then read another config."""
    before = file.read_text("utf-8")
    wanted, kept = json.loads(before), _read(file.parent)
    if wanted.get("dtype"):
        wanted["torch_dtype"] = wanted["dtype"]
    wanted |= _rope(str(wanted.get("model_type")), wanted.get("rope_parameters") or {})
    _write(file, wanted)
    try:
        same = _read(file.parent) == kept
    except (KeyError, TypeError, ValueError):
        same = False
    if same:
        return True
    file.write_text(before, "utf-8")
    return False


def _rope(model_type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta, partial_rotary_factor and rope_scaling at the top. Of bases per kind of layer: those of the layers
    with full attention there, and the base of the others as `rope_local_base_freq`."""
    made: dict[str, Any] = {}
    if isinstance(parameters.get("full_attention"), Mapping):
        local = parameters.get("sliding_attention") or {}
        made |= {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        parameters = parameters["full_attention"]
    names = OLD_NAMES.get(model_type, {})
    apart = ("rope_theta", "partial_rotary_factor")
    made |= {names.get(key, key): parameters[key] for key in apart if parameters.get(key) is not None}
    if parameters.get("rope_type", "default") != "default":
        made["rope_scaling"] = {key: value for key, value in parameters.items() if key not in apart}
    return made


def _read(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    from luthier.models.load import quiet

    with quiet():
        return dict(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).to_dict())


def older_tokenizer(file: Path) -> None:
    """The class of a plain tokenizer.json, its further special tokens, and its template, under their older names."""
    wanted = json.loads(file.read_text("utf-8"))
    for key in LOCAL_KEYS:
        wanted.pop(key, None)
    if wanted.get("tokenizer_class") == "TokenizersBackend":
        wanted["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(wanted.get("extra_special_tokens"), list):
        wanted["additional_special_tokens"] = wanted.pop("extra_special_tokens")
    template = file.parent / "chat_template.jinja"
    if template.is_file():
        wanted["chat_template"] = template.read_text("utf-8")
    _write(file, wanted)


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
