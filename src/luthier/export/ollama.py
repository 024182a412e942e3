"""A folder for ollama: GGUF file and Modelfile with template and stop tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.settings import Settings
from luthier.export import EXPORTERS

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.export.base import Export


@EXPORTERS.register("ollama")
class Ollama:
    """What GGUF can hold, with a template that ollama can write."""

    class Params(Settings):
        """No settings."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fill(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """The template is read off the training template and checked on longer conversations."""
        from luthier.export.card import model_card
        from luthier.export.fold import refuse_unmergeable
        from luthier.export.gguf import write_gguf

        refuse_unmergeable(export.adapted)
        if export.adapted.task.has_head:
            raise ModelError("ollama runs no classification heads", where="export", remedy="--as merged or bundle")
        (folder / "Modelfile").write_text(modelfile(export.adapted), "utf-8")
        found = write_gguf(export, folder)
        line = "`ollama create NAME -f Modelfile`, then `ollama run NAME`"
        (folder / "README.md").write_text(model_card(export, "ollama", line), "utf-8")
        return found


def modelfile(adapted: AdaptedModel) -> str:
    """FROM, TEMPLATE, stop tokens, window, greedy."""
    from luthier.export import shape
    from luthier.export.speaking import talks

    tokenizer: Any = adapted.base.tokenizer
    template = "{{ .Prompt }}"
    if talks(adapted):
        found = shape.of_text(adapted.template, tokenizer)
        if found is None:
            raise ModelError(
                "this chat template does more than stand around the messages, which ollama's cannot",
                where="data.template",
                remedy="--as vllm or merged, which take the template as it is",
            )
        template = shape.go(found)
    if '"""' in template:
        raise ModelError('the template holds """, which ends a Modelfile\'s text', where="data.template")
    stops = [tokenizer.convert_ids_to_tokens(one) for one in adapted.base.stop_ids]
    lines = ["FROM ./model.gguf", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {adapted.base.anatomy.window}", "PARAMETER temperature 0", ""]
    return "\n".join(lines)
