"""What an adapter_config.json may say: known type, believable numbers, harmless patterns, and the tensors to match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.limits import run_limited
from luthier.models.gate_tensors import Header, TensorInfo

if TYPE_CHECKING:
    from luthier.models.base import Base

KNOWN_TYPES = frozenset(
    [
        "ADALORA",
        "ADAMSS",
        "ADAPTION_PROMPT",
        "BEFT",
        "BOFT",
        "BONE",
        "C3A",
        "CARTRIDGE",
        "CPT",
        "DEFT",
        "DELORA",
        "FOURIERFT",
        "FROD",
        "GLORA",
        "GRALORA",
        "HIRA",
        "HRA",
        "IA3",
        "LILY",
        "LN_TUNING",
        "LOHA",
        "LOKR",
        "LORA",
        "MISS",
        "MULTITASK_PROMPT_TUNING",
        "OFT",
        "OSF",
        "PEANUT",
        "POLY",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
        "PSOFT",
        "PVERA",
        "P_TUNING",
        "RANDLORA",
        "ROAD",
        "SHADOW",
        "SHIRA",
        "SUPERTUNING",
        "TINYLORA",
        "TRAINABLE_TOKENS",
        "UNILORA",
        "VBLORA",
        "VERA",
        "WAVEFT",
        "XLORA",
    ]
)
"""PEFT 0.21's types, and `LUTHIER_…` for formats of our own."""
OWN = re.compile(r"LUTHIER_[A-Z0-9_]{1,40}")
_RANGES = {
    "r": (1, 8192),
    "rank": (1, 8192),
    "init_r": (1, 8192),
    "target_r": (1, 8192),
    "lora_alpha": (0, 65536),
    "alpha": (0, 65536),
    "lora_dropout": (0, 0.999),
    "module_dropout": (0, 0.999),
    "num_virtual_tokens": (1, 16384),
    "num_layers": (1, 2048),
    "num_attention_heads": (1, 8192),
    "token_dim": (1, 1 << 18),
    "encoder_hidden_size": (1, 1 << 18),
    "encoder_num_layers": (1, 64),
    "oft_block_size": (0, 1 << 16),
    "boft_block_size": (0, 1 << 16),
    "vera_rank": (1, 1 << 16),
    "num_vectors": (1, 1 << 14),
    "vector_length": (1, 1 << 14),
    "n_frequency": (1, 1 << 22),
    "theta_d_length": (1, 1 << 24),
    "u": (1, 1 << 16),
    "num_B": (1, 1024),
    "depth": (0, 64),
    "hybrid_r": (0, 8192),
    "mini_r": (1, 8192),
    "gralora_k": (1, 8192),
    "num_subspaces": (1, 8192),
    "subspace_rank": (1, 8192),
    "n_skills": (1, 4096),
    "n_splits": (1, 4096),
    "n_tasks": (1, 4096),
    "num_tasks": (1, 4096),
    "num_ranks": (1, 8192),
    "adapter_len": (1, 16384),
    "adapter_layers": (1, 2048),
    "decompose_factor": (-1, 1 << 16),
    "boft_block_num": (0, 1 << 16),
    "boft_n_butterfly_factor": (0, 64),
    "num_cayley_neumann_terms": (1, 1000),
    "psoft_svd_lowrank_niter": (0, 1000),
}
MOST_NUMBER = 1 << 24
_FREE = re.compile(r"seed|prng|step|warmup|tinit|tfinal")
"""Numbers that allocate nothing may be of any size."""
MOST_SCALE = 4096.0
"""lora_alpha / r above this is no training setup."""
MOST_NAMES, MOST_NAME, MOST_PATTERN = 20_000, 300, 1000
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
_LITERAL = re.compile(r"(?:[A-Za-z0-9_\-]|\\?\.|\||\((?:\?:)?|\)|\^|\$)+")
_INITS = re.compile(
    r"gaussian|orthogonal|olora|pissa|pissa_niter_\d{1,3}|corda|eva|loftq|lora_ga|default|mini|bd|random|normal|zero"
    r"|kaiming_uniform|xavier_uniform"
)
_HARMLESS: tuple[Any, ...] = (None, False, 0, "", [], {})


def check(config: Mapping[str, Any], folder: Path, headers: Sequence[Header], base: Base | None) -> None:
    """ModelError with the reason; allocates nothing by what the file says."""
    file = folder / "adapter_config.json"
    kind = config.get("peft_type")
    if not isinstance(kind, str) or not (kind in KNOWN_TYPES or OWN.fullmatch(kind)):
        raise _refused(file, f"peft_type {str(kind)[:60]!r} is not known")
    _numbers(config, file)
    _foreign(config, file)
    _targets(config, file, base)
    tensors = {name: info for header in headers for name, info in header.tensors.items()}
    if headers and not tensors:
        raise _refused(file, "the adapter has no tensors")
    if kind == "LORA":
        _lora(config, file, tensors, base)


def _numbers(config: Mapping[str, Any], file: Path) -> None:
    for key, (low, high) in _RANGES.items():
        value = config.get(key)
        if value is None or (key == "r" and value == 0 and config.get("peft_type") == "OFT"):  # by oft_block_size
            continue
        if type(value) not in (int, float) or not low <= value <= high:
            raise _refused(file, f"{key} is {str(value)[:40]}, it must be a number from {low} to {high}")
    for key, value in config.items():
        if type(value) in (int, float) and not _FREE.search(key) and not abs(value) <= MOST_NUMBER:
            raise _refused(file, f"{key} is {str(value)[:40]}, no setting is that large")
    for key, low, high in (("rank_pattern", 1, 8192), ("alpha_pattern", 0, 65536)):
        found = config.get(key)
        if found is None:
            continue
        if not isinstance(found, dict) or len(found) > MOST_NAMES:
            raise _refused(file, f"{key} is no mapping")
        for name, value in found.items():
            if type(value) not in (int, float) or not low <= value <= high:
                raise _refused(file, f"{key}[{name[:60]!r}] is {str(value)[:40]}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, int) and rank and isinstance(alpha, int | float) and alpha / rank > MOST_SCALE:
        raise _refused(file, f"lora_alpha / r is {alpha / rank:.0f}")


def _foreign(config: Mapping[str, Any], file: Path) -> None:
    """Settings through which PEFT would import a module, fetch a file or copy layers."""
    for key in ("megatron_config", "layer_replication", "adapters", "prompt_tuning_init_state_dict_path"):
        if config.get(key) not in _HARMLESS:
            raise _refused(file, f"{key} is set; luthier does not follow it", f"remove {key}")
    mapping = config.get("auto_mapping")
    if mapping not in _HARMLESS:
        library = mapping.get("parent_library") if isinstance(mapping, dict) else None
        if not isinstance(library, str) or not re.fullmatch(r"transformers(\.[A-Za-z0-9_]+)*", library):
            raise _refused(file, f"auto_mapping names the library {str(library)[:60]!r}", "remove auto_mapping")
    for key in ("init_lora_weights", "init_weights"):
        value = config.get(key)
        if isinstance(value, str) and not _INITS.fullmatch(value):
            raise _refused(file, f"{key} is {value[:60]!r}")


def _targets(config: Mapping[str, Any], file: Path, base: Base | None) -> None:
    suspects: list[str] = []
    for key in ("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules"):
        suspects += _names_of(config.get(key), key, file, may_be_pattern=True)
    for key in ("modules_to_save", "target_parameters"):
        list(_names_of(config.get(key), key, file, may_be_pattern=False))
    for key in ("rank_pattern", "alpha_pattern"):
        suspects += [name for name in config.get(key) or {} if not _NAME.fullmatch(_short(name, key, file))]
    unclear = [text for text in suspects if not _LITERAL.fullmatch(text) or _nested(text)]
    if not unclear:
        return
    if base is None:
        raise _refused(file, f"it has the pattern {unclear[0][:80]!r}", "list the modules by name")
    names = [name for name, _ in base.model.named_modules()][:MOST_NAMES]
    outcome = run_limited("luthier.models.gate_child:patterns", {"patterns": unclear, "names": names}, seconds=2)
    if not outcome.ok:
        raise _refused(file, f"the pattern {unclear[0][:80]!r} was refused: {outcome.reason}", "list the modules")


def _names_of(value: Any, key: str, file: Path, may_be_pattern: bool) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, str):
        if value != "all-linear" and not _NAME.fullmatch(_short(value, key, file)):
            if not may_be_pattern:
                raise _refused(file, f"{key} is no list of names")
            yield value
        return
    if not isinstance(value, list) or len(value) > MOST_NAMES:
        raise _refused(file, f"{key} is no list of names")
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(_short(name, key, file, MOST_NAME)):
            raise _refused(file, f"{key} holds {str(name)[:60]!r}, which is no name")


def _short(text: str, key: str, file: Path, most: int = MOST_PATTERN) -> str:
    if len(text) > most:
        raise _refused(file, f"{key} holds a text of {len(text)} characters")
    return text


def _nested(text: str) -> bool:
    """Deep groups are cheap to match only where nothing repeats; here nothing does, but depth costs the compiler."""
    return text.count("(") > 50


def _lora(config: Mapping[str, Any], file: Path, tensors: Mapping[str, TensorInfo], base: Base | None) -> None:
    """Every A has its B of the same rank; with a base, every target has both, in the shapes of its weights."""
    halves = {"lora_A.weight": "lora_B.weight", "lora_B.weight": "lora_A.weight"}
    halves |= {"lora_embedding_A": "lora_embedding_B", "lora_embedding_B": "lora_embedding_A"}
    pairs = 0
    for name, info in tensors.items():
        ending = next((half for half in halves if name.endswith("." + half)), None)
        if ending is None:
            continue
        pairs += 1
        partner = tensors.get(name.removesuffix(ending) + halves[ending])
        if partner is None:
            raise _refused(file, f"{name} has no {halves[ending]}", "the adapter is not whole: take it again")
        if ending == "lora_A.weight" and info.shape[:1] != partner.shape[1:2]:
            raise _refused(file, f"{name} and its B have the ranks {info.shape[:1]} and {partner.shape[1:2]}")
    if tensors and not pairs:
        raise _refused(file, "no tensor is named like a LoRA weight (lora_A, lora_B)")
    if base is not None and not getattr(base.model, "peft_config", None):
        for name, shape in _expected(config, base):
            held = tensors.get(name)
            if held is None:
                raise _refused(file, f"{name} is missing", "the adapter is not whole, or belongs to another model")
            if shape is not None and held.shape != shape:
                raise _refused(file, f"{name} has the shape {list(held.shape)}, this model needs {list(shape)}")


def _expected(config: Mapping[str, Any], base: Base) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """The tensors that target_modules asks for in this model (PEFT's rule for lists: whole name or ending)."""
    wanted = config.get("target_modules")
    if not isinstance(wanted, list) or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return
    ranks = config.get("rank_pattern") or {}
    for name, module in base.model.named_modules():
        weight = getattr(module, "weight", None)
        is_table = type(module).__name__ == "Embedding"
        if weight is None or weight.dim() != 2 or is_table or not _matches(name, wanted):
            continue
        wide, out = tuple(weight.shape) if type(module).__name__ == "Conv1D" else tuple(weight.shape)[::-1]
        if hasattr(module, "in_features"):  # packed 4-bit weights have another shape than they stand for
            wide, out = int(module.in_features), int(module.out_features)
        rank = None if ranks else config.get("r")
        stem = f"base_model.model.{name}"
        yield f"{stem}.lora_A.weight", (rank, wide) if rank else None
        yield f"{stem}.lora_B.weight", (out, rank) if rank else None


def _matches(name: str, wanted: Iterable[str]) -> bool:
    return any(name == one or name.endswith("." + one) for one in wanted)


def _refused(file: Path, what: str, remedy: str = "take the adapter again from where it came from") -> ModelError:
    return ModelError(f"{file.name}: {what}", where=str(file), remedy=remedy)
