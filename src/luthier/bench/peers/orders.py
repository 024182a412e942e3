"""What a process of luthier's own and one of a peer have in common: orders in, answers out, peaks, versions."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def serve(threads: int, make: Callable[[], Answer]) -> None:
    """One JSON order a line until stdin ends, one JSON line for each. Libraries print: answers go to the stdout that
    we were born with. `make` is called when that is arranged."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(threads)
    answer = make()
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


def peaks(on_gpu: bool) -> dict[str, float]:
    """Peak resident memory of this process, and what it had on the GPU at most."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak_rss_mb": resident / (1 << 20 if sys.platform == "darwin" else 1024)}
    if on_gpu:
        import torch

        found["peak_cuda_mb"] = torch.cuda.max_memory_allocated() / (1 << 20)
    return found


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of those that are installed in this interpreter."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
