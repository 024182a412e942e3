"""The adapter folder itself, in PEFT's format where PEFT has the method, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.settings import Settings
from luthier.export import EXPORTERS

if TYPE_CHECKING:
    from luthier.export.base import Export


@EXPORTERS.register("adapter")
class Adapter:
    """Adapter weights, tokenizer, luthier.json and a card."""

    class Params(Settings):
        """No settings."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fill(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """Write the folder, load it again onto a fresh base, compare. An adapter stays float32, as it was trained."""
        from luthier.adapted import load
        from luthier.export.card import model_card
        from luthier.export.certificate import certify, logits_of_adapted, reference
        from luthier.export.readers import for_older_readers

        if export.dtype != "float32":
            raise ModelError(
                f"an adapter is not rounded to {export.dtype}: it is small, and was trained in float32",
                where="dtype",
                remedy="--as merged --dtype " + export.dtype,
            )
        adapted = export.adapted
        inner = folder / ".adapter"
        adapted.save(inner)
        for path in inner.iterdir():
            path.rename(folder / path.name)
        inner.rmdir()
        for_older_readers(folder)
        (folder / "README.md").write_text(model_card(export, "adapter"), "utf-8")
        same: dict[str, Any] = {"device": str(adapted.device), "dtype": "float32", "quantize": "none"}
        again = load(folder, base=str(adapted.base.path), **same)  # as the reference is, whatever training saw
        again.layout = reference(adapted).layout
        return certify(adapted, logits_of_adapted(again), export.rows, "float32")
