"""Base and adapter folded together, tensor by tensor: read from the base's files, merged in float32, rounded once.

Besides the model that is already in memory, one output shard and one layer are held. Where a method cannot be folded
tensor by tensor (stacks, trained token rows, resized position tables), a fresh copy is merged in memory instead.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import CannotMerge, ModelError
from luthier.core.fingerprint import of_file

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel

DTYPES = ("float32", "bfloat16", "float16")
MERGED_MARK = "certificate.json"


@dataclass(frozen=True)
class Place:
    """Where a tensor of the model stands in the base's files; None: nowhere, the adapter holds it."""

    name: str
    file: Path | None
    key: str
    size: int


def adapter_digest(adapted: AdaptedModel) -> str:
    """sha256 over the adapter's tensors: what a merged folder remembers, so that nobody merges it in twice."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(adapted.attached.state().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def merged_before(folder: str | Path) -> list[str]:
    """Digests of the adapters that a base folder holds already, by its certificate."""
    mark = Path(folder) / MERGED_MARK
    found = json.loads(mark.read_text("utf-8")) if mark.is_file() else {}
    return [str(one) for one in found.get("adapters", ())] if isinstance(found, dict) else []


def refuse_unmergeable(adapted: AdaptedModel) -> None:
    """CannotMerge with the method's own reason, or because the base already holds this very adapter."""
    attached: Any = adapted.attached
    if getattr(attached, "merged", False):
        raise CannotMerge("already merged", where="merge", remedy="load the base and the adapter again")
    if not attached.can_merge:
        attached.merge()  # raises, with the reason
    if adapter_digest(adapted) in merged_before(adapted.base.path):
        raise CannotMerge(
            "this base already holds this adapter: it was merged before",
            where=str(adapted.base.path),
            remedy="use that folder as it is, or merge into the base it was made from",
        )


def write_merged(adapted: AdaptedModel, folder: Path, dtype: str, shard: int) -> dict[str, Any]:
    """Write config, weights and tokenizer of the merged model. Returns how it was done."""
    from luthier.export.readers import for_older_readers

    refuse_unmergeable(adapted)
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}", where="dtype", remedy=" | ".join(DTYPES))
    kind = getattr(torch, dtype)
    attached: Any = adapted.attached
    plan = _plan(adapted) if getattr(attached, "folds_apart", False) else None
    if plan is None:
        _merge_in_memory(adapted, folder, kind, shard)
        how: dict[str, Any] = {"merged": "in memory"}
    else:
        how = {"merged": "shard by shard", **_write_shards(attached, plan, folder, kind, shard)}
        _write_config(adapted, folder, dtype)
    adapted.base.tokenizer.save_pretrained(folder)
    for_older_readers(folder)
    return how


def _plan(adapted: AdaptedModel) -> list[Place] | None:
    """Every tensor of the merged model in the order of the base's files; None where one cannot be placed."""
    from safetensors import safe_open

    attached: Any = adapted.attached
    shapes: dict[str, tuple[Path, tuple[int, ...], int]] = {}
    for order, file in enumerate(sorted(Path(adapted.base.path).glob("*.safetensors"))):
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                shapes[key] = (file, tuple(handle.get_slice(key).get_shape()), order)
    prefix = str(getattr(adapted.base.model, "base_model_prefix", "")) + "."
    places, ranks = [], {}
    for name, tensor in attached.base_tensors().items():
        keys = (name, name.removeprefix(prefix), prefix + name)
        key = next((one for one in keys if one in shapes and shapes[one][1] == tuple(tensor.shape)), None)
        if key is None and name not in attached.inplace.trained:
            return None
        found: tuple[Path | None, tuple[int, ...], int] = shapes[key] if key else (None, (), len(shapes))
        shard, _, order = found
        places.append(Place(name, shard, key or name, tensor.numel()))
        ranks[name] = order
    return sorted(places, key=lambda place: ranks[place.name])


def _shards(plan: Sequence[Place], width: int, most: int) -> list[list[Place]]:
    made: list[list[Place]] = [[]]
    filled = 0
    for place in plan:
        if made[-1] and filled + place.size * width > most:
            made.append([])
            filled = 0
        made[-1].append(place)
        filled += place.size * width
    return made


def _write_shards(attached: Any, plan: Sequence[Place], folder: Path, dtype: torch.dtype, most: int) -> dict[str, Any]:
    from safetensors.torch import save_file

    shards = _shards(plan, dtype.itemsize, most)
    weight_map: dict[str, str] = {}
    largest = total = 0
    for number, places in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = dict(_folded(attached, places, dtype))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        largest, total = max(largest, size), total + size
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return {"shards": len(shards), "largest_shard_bytes": largest}


def _folded(attached: Any, places: Sequence[Place], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, merged tensor), one after the other; files are opened once."""
    from safetensors import safe_open

    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for place in places:
            if place.file is None:
                raw = attached.inplace.trained[place.name].detach().cpu()
            else:
                if place.file not in opened:
                    opened[place.file] = stack.enter_context(safe_open(place.file, framework="pt"))
                raw = opened[place.file].get_tensor(place.key)
            if raw.is_floating_point():
                raw = attached.folded(place.name, raw.float()).to(dtype)
            yield place.name, raw.contiguous().clone()


def _write_config(adapted: AdaptedModel, folder: Path, dtype: str) -> None:
    model: Any = adapted.base.model
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _merge_in_memory(adapted: AdaptedModel, folder: Path, dtype: torch.dtype, shard: int) -> None:
    from luthier.models.load import quiet

    fresh: Any = float32_copy(adapted)
    fresh.attached.merge()
    fresh.base.model.to(dtype)
    fresh.base.model.config.dtype = dtype
    with quiet():
        fresh.base.model.save_pretrained(folder, max_shard_size=shard)


def float32_copy(adapted: AdaptedModel) -> AdaptedModel:
    """The same model, loaded again in float32 from its base and what the adapter would be saved as."""
    from luthier.adapted import load

    with tempfile.TemporaryDirectory() as scratch:
        adapted.save(Path(scratch) / "adapter")
        options: dict[str, Any] = {"dtype": "float32", "quantize": "none", "device": str(adapted.device)}
        return load(Path(scratch) / "adapter", base=str(adapted.base.path), **options)


def hashes(folder: Path) -> dict[str, str]:
    """relative name → sha256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MERGED_MARK)
    return {str(path.relative_to(folder)): of_file(path) for path in files}


def size_bytes(text: str) -> int:
    """5GB, 500MB, 200KB → bytes."""
    units: Mapping[str, int] = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise ModelError(f"{text!r} is no size", where="shard", remedy="write 5GB, 500MB or 200KB")
    return int(float(number) * units[unit])
