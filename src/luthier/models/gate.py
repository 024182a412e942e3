"""The gate: every model, tokenizer, adapter and template passes here before any library opens it.

Refused with a reason: pickles, Python files, foreign code, hub kernels, headers that lie, weights that are not
finite, numbers that would allocate the machine away, patterns and templates and tokenizers that hang or crash.
What may hang is first tried in a child process (`core.limits`). Torch-free.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.limits import run_limited
from luthier.models import gate_adapter, gate_card, gate_tensors

if TYPE_CHECKING:
    from luthier.models.base import Base

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh")
MOST_JSON = 4 << 20
MOST_TOKENIZER = 128 << 20
MOST_TEMPLATE = 200_000
MOST_FILES = 10_000
_FOREIGN = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")
_BOUNDS = {
    "hidden_size": 1 << 18,
    "n_embd": 1 << 18,
    "d_model": 1 << 18,
    "intermediate_size": 1 << 22,
    "n_inner": 1 << 22,
    "d_ff": 1 << 22,
    "vocab_size": 1 << 23,
    "num_hidden_layers": 2048,
    "n_layer": 2048,
    "num_layers": 2048,
    "num_attention_heads": 1 << 13,
    "num_key_value_heads": 1 << 13,
    "n_head": 1 << 13,
    "head_dim": 1 << 14,
    "max_position_embeddings": 1 << 27,
    "n_positions": 1 << 27,
    "num_labels": 1 << 20,
}
"""Largest believable values: a config must not allocate the machine away."""
_SHARD = re.compile(r"[A-Za-z0-9._-]+\.safetensors")


def check_model_folder(path: str | Path, finite: bool = True) -> None:
    """A base model folder: no code, no pickle as its only weights, a sane config, whole and finite weights."""
    folder = Path(path)
    names = _listing(folder)
    _refuse_code(folder, names)
    weights = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not weights:
        raise _refused(folder / pickles[0], "the weights are pickled", "convert them to safetensors")
    if "adapter_config.json" in names:  # transformers would put that adapter on the base, unasked and unchecked
        raise _refused(
            folder / "adapter_config.json",
            "this folder holds an adapter beside the model",
            "move the adapter to a folder of its own",
        )
    for name in names:
        if name.endswith(".json") and name not in ("tokenizer.json", "vocab.json"):
            check_config(folder / name)
    _check_index(folder)
    for name in weights:
        check_safetensors(folder / name, finite)
    check_tokenizer(folder)


def check_adapter_folder(path: str | Path, base: Base | None = None) -> None:
    """An adapter folder, ours or PEFT's; with `base`, also that it was trained on this very base."""
    folder = Path(path)
    names = _listing(folder)
    _refuse_code(folder, names)
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        raise _refused(
            folder / pickles[0],
            "it is pickled; an adapter is read from safetensors only",
            "delete it, or convert it if it holds the weights",
        )
    headers = [
        check_safetensors(folder / name)
        for name in names
        if name.endswith(".safetensors") and (folder / name).is_file()
    ]
    for name in names:
        if name.endswith(".json") and name not in ("tokenizer.json", "vocab.json", "adapter_config.json"):
            check_config(folder / name)
    if (folder / "adapter_config.json").is_file():
        config = read_object(folder / "adapter_config.json", MOST_JSON)
        _refuse_foreign(config, folder / "adapter_config.json")
        gate_adapter.check(config, folder, headers, base)
    card = check_card(folder)
    if base is not None:
        refuse_other_base(card, base.fingerprint, folder)
    check_tokenizer(folder)


def check_card(folder: Path) -> dict[str, Any]:
    """luthier.json of an adapter folder (empty without one): every field is what the loader takes it for."""
    file = folder / "luthier.json"
    if not file.is_file():
        return {}
    card: dict[str, Any] = read_object(file, MOST_JSON)
    _refuse_foreign(card, file)
    gate_card.check(card, file)
    if source := gate_card.template_of(card):
        check_template(source)
    return card


def refuse_other_base(card: Mapping[str, Any], fingerprint: Mapping[str, Any], folder: Path) -> None:
    """Compare the `base` block of luthier.json with a base's fingerprint; an absent block proves nothing."""
    block = card.get("base") or {}
    wanted = block.get("fingerprint") if isinstance(block, dict) else None
    for part in ("weights", "tokenizer"):
        before = wanted.get(part) if isinstance(wanted, dict) else None
        if before and fingerprint.get(part) and before != fingerprint[part]:
            raise ModelError(
                f"this adapter was trained on another base: the {part} differ",
                where=str(folder),
                remedy=f"load it on {str(block.get('path', 'its own base'))[:200]}",
            )


def check_safetensors(path: Path, finite: bool = True) -> gate_tensors.Header:
    """Header by our own parser, then (once for each state of the file) every number."""
    header = gate_tensors.read_header(path)
    if finite:
        facts = path.stat()
        _finite_once(str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino)
    return header


@lru_cache(maxsize=1024)
def _finite_once(path: str, size: int, changed: int, inode: int) -> None:
    gate_tensors.refuse_not_finite(gate_tensors.read_header(Path(path)))


def check_config(path: Path) -> dict[str, Any]:
    """Any JSON of a model folder: bounded, without foreign code, without absurd sizes."""
    config = read_object(path, MOST_JSON, also_lists=True)
    _refuse_foreign(config, path)
    return config if isinstance(config, dict) else {}


def read_object(path: Path, most: int, also_lists: bool = False) -> Any:
    """A JSON object of bounded size."""
    if path.stat().st_size > most:
        raise _refused(path, f"it is larger than {most >> 20} MB")
    raw = path.read_bytes()
    if also_lists and raw.lstrip()[:1] == b"[":
        return gate_tensors.parse_object(b'{"list": ' + raw + b"}", path)
    return gate_tensors.parse_object(raw.removeprefix(b"\xef\xbb\xbf"), path)


def _refuse_foreign(config: Any, path: Path) -> None:
    """Walk a JSON value, however deep: foreign code, hub kernels, and numbers out of bounds."""
    left: list[tuple[str, Any]] = [("", config)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            for name in _FOREIGN:
                if value.get(name):
                    raise _refused(path, f"it asks for foreign code ({name})", f"remove {name}; luthier runs none")
            left += value.items()
        elif isinstance(value, list):
            left += [(key, inner) for inner in value]
        else:
            _refuse_value(value, path, key)


def _refuse_value(value: Any, path: Path, key: str) -> None:
    if isinstance(value, str):
        if ("attn_implementation" in key or "kernel" in key) and re.search(r"[/\\:@|]", value):
            raise _refused(path, f"{key} names code on a hub ({value[:80]!r})", f"remove {key}")
    elif type(value) in (int, float) and key in _BOUNDS and not 0 <= value <= _BOUNDS[key]:
        raise _refused(path, f"{key} is {str(value)[:40]}, the largest that is believed is {_BOUNDS[key]}")


def _check_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    places = read_object(index, 4 * MOST_JSON).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _refused(index, "it has no weight_map")
    for name in places.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise _refused(index, f"it names {str(name)[:80]!r}, which is no safetensors file of this folder")


def check_tokenizer(path: str | Path) -> None:
    """tokenizer.json and chat templates of a folder (or one tokenizer.json): tried in a child process first."""
    folder = Path(path)
    file = folder if folder.is_file() else folder / "tokenizer.json"
    templates = [] if folder.is_file() else list(_templates(folder))
    for text in templates:
        if len(text) > MOST_TEMPLATE:
            raise _refused(folder, f"the chat template is longer than {MOST_TEMPLATE} characters")
    if file.is_file() and file.stat().st_size > MOST_TOKENIZER:
        raise _refused(file, f"it is larger than {MOST_TOKENIZER >> 20} MB")
    _tried(str(file.resolve()) if file.is_file() else "", _digest(file), tuple(templates))


def check_template(text: str) -> None:
    """A chat template: refused when it is too long, hangs, writes without end or breaks the sandbox."""
    if len(text) > MOST_TEMPLATE:
        raise ModelError("the chat template is too long", where="chat_template", remedy="template: alpaca")
    _tried("", "", (text,))


def _templates(folder: Path) -> Iterator[str]:
    more = folder / "additional_chat_templates"
    names = [f"{more.name}/{name}" for name in _listing(more)] if more.is_dir() else []
    for name in sorted(name for name in [*_listing(folder), *names] if name.endswith(".jinja")):
        if (folder / name).stat().st_size > MOST_JSON:
            raise _refused(folder / name, "it is too large for a template")
        yield (folder / name).read_text("utf-8", "replace")
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (folder / name).is_file():
            config = check_config(folder / name)
            if config.get("fast_tokenizer_files"):
                raise _refused(folder / name, "fast_tokenizer_files names another tokenizer than tokenizer.json")
            found = config.get("chat_template")
            listed = found if isinstance(found, list) else [found]
            for item in listed:
                text = item.get("template") if isinstance(item, dict) else item
                if isinstance(text, str):
                    yield text


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


_PASSED: set[tuple[str, tuple[str, ...]]] = set()
"""Contents that passed in this process."""


def _tried(file: str, digest: str, templates: tuple[str, ...]) -> None:
    key = (digest, templates)
    if key in _PASSED or not (file or templates) or _is_ours(file):
        return
    megabytes = (Path(file).stat().st_size >> 20) if file else 0
    outcome = run_limited(
        "luthier.models.gate_child:inspect",
        {"tokenizer": file, "templates": list(templates)},
        seconds=2 + megabytes / 5,
        memory_mb=512 + 20 * megabytes,
    )
    if not outcome.ok:
        raise ModelError(
            f"the {outcome.stage or 'tokenizer'} was refused: {outcome.reason}",
            where=file or "chat_template",
            remedy="template: alpaca" if "template" in outcome.stage else "take the tokenizer of the model again",
        )
    _PASSED.add(key)


def _is_ours(file: str) -> bool:
    """The tokenizer inside this package needs no child."""
    return bool(file) and Path(__file__).resolve().parent in Path(file).parents


def _listing(folder: Path) -> list[str]:
    """Names of the regular files of a folder, sorted (sub-folders are never read)."""
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}", where=str(folder), remedy="name a folder")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelError(f"the folder cannot be read: {error.strerror}", where=str(folder)) from None
    if len(names) > MOST_FILES:
        raise _refused(folder, f"it has {len(names)} files")
    known = (".json", ".safetensors", ".jinja")
    for name in names:
        if name.endswith(known) and not (folder / name).is_file():
            raise _refused(folder / name, "it is no regular file")
    return [name for name in names if (folder / name).is_file()]


def _refuse_code(folder: Path, names: Sequence[str]) -> None:
    if found := [name for name in names if name.lower().endswith(CODE)]:
        raise _refused(
            folder / found[0], "a model folder must not hold code", "delete it, if the model is of a known architecture"
        )


def _refused(path: Path, what: str, remedy: str = "take another file") -> ModelError:
    return ModelError(f"{path.name}: {what}", where=str(path), remedy=remedy)
