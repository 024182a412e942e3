"""Everything in one folder that answers with transformers alone: model, template, stop tokens, a script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.settings import Settings
from luthier.export import EXPORTERS

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.export.base import Export

FLAT = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
"""Kinds without weights to merge whose file is one flat table, so that `answer.py` can put it before the prompt."""
TABLE = "prompt_embeddings"


@EXPORTERS.register("bundle")
class Bundle:
    """model/ (merged, or the base beside a table of virtual tokens), prompt.json, answer.py, requirements.txt."""

    class Params(Settings):
        """How it is stored."""

        shard: str = "5GB"
        """Largest file."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fill(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """Certified through the bundle's own script, which knows nothing of luthier."""
        from luthier.export.asking import prompt_facts, prompts
        from luthier.export.card import model_card
        from luthier.export.certificate import certify
        from luthier.export.fold import size_bytes, write_merged
        from luthier.export.speaking import gated, make_it_speak

        adapted: Any = export.adapted
        model = folder / "model"
        model.mkdir()
        if adapted.attached.can_merge:
            made = write_merged(adapted, model, export.dtype, size_bytes(self.params.shard))
        else:
            made = _beside(adapted, folder, export.dtype)
        made |= make_it_speak(adapted, model, export.examples)
        template = made.get("template") or {}
        templated = 0 < template.get("prompts", 0) == template.get("equal_ids")
        facts = prompt_facts(adapted, export.dtype, templated)
        (folder / "prompt.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        source = Path(__file__).parent / "bundled" / "answer.py"
        shutil.copyfile(source, folder / "answer.py")
        needs = ("torch", "transformers", "safetensors", *(("jinja2",) if not adapted.labels else ()))
        (folder / "requirements.txt").write_text("".join(f"{n}=={version(n).split('+')[0]}\n" for n in needs), "utf-8")
        (folder / "README.md").write_text(model_card(export, "bundle", _loading(adapted)), "utf-8")
        opened = _script(folder / "answer.py").Bundle(folder)
        equal = [opened.prompt_ids(messages) == ids for messages, ids in prompts(export)]
        found = certify(adapted, lambda ids, prompt: opened.logits(list(ids), prompt), export.rows, export.dtype)
        if equal and not all(equal):
            found |= {"passed": False, "reason": f"{equal.count(False)} of {len(equal)} prompts have other ids"}
        return gated({**made, **found, "prompts": {"compared": len(equal), "equal_ids": sum(equal)}})


def _beside(adapted: AdaptedModel, folder: Path, dtype: str) -> dict[str, Any]:
    """The base's files as they are, and the table of virtual tokens beside them."""
    from safetensors.torch import save_file

    from luthier.core.errors import ModelError
    from luthier.export.readers import for_older_readers

    attached: Any = adapted.attached
    kind = getattr(attached, "written_type", None)
    one_sided = adapted.base.kind != "encoder_decoder"
    if kind not in FLAT or adapted.task.has_head or attached.inplace.trained or not one_sided:
        raise ModelError(
            f"{adapted.method['name']} cannot be bundled: it has no weights to merge, and transformers alone "
            "cannot run it",
            where="export",
            remedy="--as adapter, or `luthier serve`",
        )
    if dtype != "float32":
        raise ModelError("only merged bundles are rounded", where="dtype", remedy="leave --dtype out")
    adapted.save(folder / "adapter")
    from safetensors.torch import load_file

    table = load_file(folder / "adapter" / "adapter_model.safetensors")[TABLE]
    shutil.rmtree(folder / "adapter")
    save_file({TABLE: table, "kind": _flag(kind)}, folder / "virtual_tokens.safetensors")
    for path in sorted(Path(adapted.base.path).iterdir()):
        if path.suffix in (".safetensors", ".json") and path.name not in ("certificate.json", "training.json"):
            shutil.copyfile(path, folder / "model" / path.name)
    adapted.base.tokenizer.save_pretrained(folder / "model")
    for_older_readers(folder / "model")
    return {"merged": "not possible: the base beside its virtual tokens"}


def _flag(kind: str) -> Any:
    import torch

    return torch.tensor(0 if kind == "PREFIX_TUNING" else 1, dtype=torch.int64)


def _script(path: Path) -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("bundled_answer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _loading(adapted: AdaptedModel) -> str:
    word = "answer to"
    if adapted.labels:
        word = {"regression": "value of", "multi": "labels of"}.get(adapted.problem, "label of")
    lines = [
        f"Prints the {word} a text; needs what requirements.txt names, and no network:",
        "",
        "```bash",
        "python -m pip install -r requirements.txt",
        'python answer.py "…"',
        "```",
    ]
    if adapted.attached.can_merge:
        from luthier.export.certificate import loader_name

        name = loader_name(adapted)
        lines += ["", f'`model/` is an ordinary model folder: `{name}.from_pretrained("model")`.']
    return "\n".join(lines)
