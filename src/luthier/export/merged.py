"""A standalone model: base and adapter folded together in float32, rounded once to the wanted dtype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.settings import Settings
from luthier.export import EXPORTERS

if TYPE_CHECKING:
    from luthier.export.base import Export


@EXPORTERS.register("merged")
class Merged:
    """A Hugging Face model folder without any adapter."""

    class Params(Settings):
        """How it is stored."""

        shard: str = "5GB"
        """Largest file; also what the merge holds in memory besides the model itself."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fill(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """CannotMerge says why a method has nothing to merge; the model in memory stays as it is."""
        from luthier.export.card import model_card
        from luthier.export.certificate import certify_folder
        from luthier.export.fold import size_bytes, write_merged
        from luthier.export.speaking import gated, make_it_speak

        how = write_merged(export.adapted, folder, export.dtype, size_bytes(self.params.shard))
        spoken = make_it_speak(export.adapted, folder, export.examples)
        (folder / "README.md").write_text(model_card(export, "merged"), "utf-8")
        return gated({**how, **spoken, **certify_folder(export.adapted, folder, export.rows, export.dtype)})
