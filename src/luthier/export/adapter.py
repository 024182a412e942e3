"""The adapter folder itself, in PEFT's format where PEFT has the method, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        """Write the folder, load it again, compare."""
        import torch

        from luthier.adapted import CARD, load
        from luthier.core import atomic
        from luthier.data.batching import evaluation_batches
        from luthier.export.card import model_card

        adapted = export.adapted
        inner = folder / ".adapter"
        adapted.save(inner)
        for path in inner.iterdir():
            path.rename(folder / path.name)
        inner.rmdir()
        (folder / "README.md").write_text(model_card(adapted.card(), export.facts), "utf-8")
        again = load(folder, base=str(adapted.base.path), device=str(adapted.device))
        again.layout = adapted.layout
        rows = [export.rows[index] for index in range(min(16, len(export.rows)))]
        batch = next(iter(evaluation_batches(rows, 1 << 20)))
        with torch.no_grad():
            first, second = adapted.hidden(batch).float(), again.hidden(batch).float()
        difference = float((first - second).abs().max())
        passed = difference <= 1e-5 * max(1.0, float(first.abs().max()))
        atomic.fsync_folder(folder / CARD)
        return {
            "passed": passed,
            "kind": "adapter",
            "rows": len(rows),
            "max_hidden_difference": difference,
            "reason": f"largest hidden-state difference after a reload: {difference:.3g}",
        }
