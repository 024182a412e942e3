"""Which method wrote an adapter folder: for folders without luthier.json, PEFT's included."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.core.errors import ModelError

BUNDLE = "bundle.json"
OWN = "LUTHIER_"
PEFT = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning"}
"""PEFT's type → the member that reads it; every other type is read by `peft`."""


def method_of_folder(folder: Path) -> str:
    """Name of the member that reads this folder."""
    if (folder / BUNDLE).is_file():
        return "stack"
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError("no adapter_config.json", where=str(folder), remedy="name the folder of an adapter")
    try:
        kind = json.loads(file.read_text("utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError):
        raise ModelError("adapter_config.json does not say its type", where=str(file)) from None
    if not isinstance(kind, str):
        raise ModelError("adapter_config.json does not say its type", where=str(file))
    if kind.startswith(OWN):
        return kind.removeprefix(OWN).lower()
    return PEFT.get(kind, "peft")
