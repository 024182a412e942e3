"""A standalone model: base and adapter folded together in float32, rounded once to the wanted dtype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.settings import Settings
from luthier.export import EXPORTERS

if TYPE_CHECKING:
    from luthier.export.base import Export


@EXPORTERS.register("merged")
class Merged:
    """A Hugging Face model folder without any adapter."""

    class Params(Settings):
        """How it is stored."""

        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        shard: str = "5GB"
        """Largest file."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fill(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """Merge a fresh copy, never the one in memory; CannotMerge says why a method has nothing to merge."""
        import tempfile

        import torch

        from luthier.adapted import load
        from luthier.export.card import model_card
        from luthier.export.certificate import certify_folder

        adapted = export.adapted
        with tempfile.TemporaryDirectory() as scratch:
            adapted.save(Path(scratch) / "adapter")
            fresh = load(Path(scratch) / "adapter", base=str(adapted.base.path), dtype="float32")
        fresh.attached.merge()
        dtype = export.dtype if export.dtype != "float32" else self.params.dtype
        fresh.base.model.to(getattr(torch, dtype))
        fresh.base.model.config.dtype = dtype
        fresh.base.model.save_pretrained(folder, max_shard_size=self.params.shard)
        fresh.base.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(adapted.card(), export.facts, merged=True), "utf-8")
        return {"kind": "merged", **certify_folder(adapted, folder, export.rows, dtype)}
