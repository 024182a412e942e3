"""A folder for vLLM with its launch line: merged model, chat template, stop tokens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.settings import Settings
from luthier.export import EXPORTERS

if TYPE_CHECKING:
    from luthier.export.base import Export

ARCHITECTURES = frozenset(
    f"{name}ForCausalLM"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi", "Phi3", "OPT", "Olmo2")
) | {"GPT2LMHeadModel", "GPTNeoXForCausalLM", "FalconForCausalLM", "BloomForCausalLM", "MPTForCausalLM"}
HEAD_SIZES = (32, 64, 80, 96, 112, 120, 128, 192, 256)
"""Head widths that vLLM's attention kernels have."""
GREEDY = "Answers are greedy, as they were measured, unless a request names its own temperature."


@EXPORTERS.register("vllm")
class Vllm:
    """A merged folder that `vllm serve` takes as it is."""

    class Params(Settings):
        """How it is stored."""

        shard: str = "5GB"
        """Largest file."""
        name: str = "tuned"
        """Model name of the launch line."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fill(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """What vLLM cannot take is refused before anything is written."""
        from luthier.export.card import model_card
        from luthier.export.certificate import certify_folder
        from luthier.export.fold import refuse_unmergeable, size_bytes, write_merged
        from luthier.export.speaking import gated, make_it_speak

        adapted: Any = export.adapted
        refuse_unmergeable(adapted)
        _refuse(adapted)
        how = write_merged(adapted, folder, export.dtype, size_bytes(self.params.shard))
        spoken = make_it_speak(adapted, folder, export.examples)
        command = launch_command(self.params.name, export.dtype, int(adapted.base.anatomy.window))
        line = shlex.join(command)
        (folder / "launch.json").write_text(json.dumps({"command": command}, indent=2) + "\n", "utf-8")
        told = f"Inside this folder:\n\n```bash\n{line}\n```\n\n{GREEDY}"
        (folder / "README.md").write_text(model_card(export, "vllm", told), "utf-8")
        found = certify_folder(adapted, folder, export.rows, export.dtype)
        return gated({**how, **spoken, "launch": line, **found})


def launch_command(name: str, dtype: str, window: int) -> list[str]:
    """Template and stop tokens come from the folder. Greedy does not: vLLM takes a temperature from
    generation_config.json, ignores its `do_sample`, and samples at 1.0 where neither folder nor request names one."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ModelError(f"{name!r} is no model name", where="name", remedy="letters, digits, - _ .")
    where = ["vllm", "serve", ".", "--served-model-name", name, "--dtype", dtype, "--max-model-len", str(window)]
    return [*where, "--generation-config", ".", "--override-generation-config", '{"temperature": 0}']


def _refuse(adapted: Any) -> None:
    name, anatomy = type(adapted.base.model).__name__, adapted.base.anatomy
    why = ""
    if adapted.task.has_head:
        why = "this folder is for chat and completions, and the run trained a classification head"
    elif name not in ARCHITECTURES:
        why = f"the architecture {name} is not among those it is known to run"
    elif anatomy.head_dim not in HEAD_SIZES:
        why = f"its attention has no kernel for heads of width {anatomy.head_dim}"
    if why:
        raise ModelError(f"not for vLLM: {why}", where="export", remedy="--as merged or bundle")
