"""Which linear layers read the same input, as one forward shows it: query, key and value; gate and up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.inference_mode()
def readers(layers: Mapping[str, nn.Module], run: Callable[[], Any] | None) -> list[tuple[str, ...]]:
    """Names in groups that were called one after the other with the very same tensor, and once only, by `run`.

    Every layer is in one group, most by themselves. An architecture that cannot be run is found by others.
    """
    groups: list[list[str]] = []
    calls: Counter[str] = Counter()
    last: list[Tensor | None] = [None]

    def seen(name: str) -> Callable[[nn.Module, Any], None]:
        def before(module: nn.Module, entries: Any) -> None:
            calls[name] += 1
            entry = entries[0] if entries else None
            if entry is not None and entry is last[0]:
                groups[-1].append(name)
            else:
                groups.append([name])
            last[0] = entry

        return before

    hooks = [layer.register_forward_pre_hook(seen(name)) for name, layer in layers.items()]
    try:
        if run is not None:
            run()
    except Exception:
        groups.clear()
    finally:
        for hook in hooks:
            hook.remove()
    found = [tuple(group) for group in groups if all(calls[name] == 1 for name in group)]
    known = {name for group in found for name in group}
    return [*found, *((name,) for name in layers if name not in known)]
