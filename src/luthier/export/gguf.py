"""One GGUF file for llama.cpp and its relatives, read back and computed with before it is published."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.settings import Settings
from luthier.export import EXPORTERS

if TYPE_CHECKING:
    from luthier.export.base import Export

FILE = "model.gguf"


@EXPORTERS.register("gguf")
class Gguf:
    """Plain Llama models with a byte-level BPE tokenizer; everything else is refused by name."""

    class Params(Settings):
        """No settings."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fill(self, export: Export, folder: Path) -> Mapping[str, Any]:
        """Merge, write, read back."""
        from luthier.export.card import model_card

        found = write_gguf(export, folder)
        (folder / "README.md").write_text(model_card(export, "gguf", "`llama-cli -m model.gguf`"), "utf-8")
        return found


def write_gguf(export: Export, folder: Path) -> dict[str, Any]:
    """`model.gguf` in `folder`; certified by arithmetic on the file's own tensors and metadata."""
    from luthier.data.templates.base import begins_with_bos
    from luthier.export import gguf_llama, gguf_vocabulary
    from luthier.export.certificate import certify
    from luthier.export.fold import refuse_unmergeable, write_merged
    from luthier.export.speaking import PROBES, chat_template, talks

    adapted: Any = export.adapted
    refuse_unmergeable(adapted)
    if adapted.task.has_head:
        raise ModelError("GGUF holds no classification head", where="export", remedy="--as merged or bundle")
    gguf_llama.check(adapted.base.model)
    tokenizer, config = adapted.base.tokenizer, adapted.base.model.config
    rows = [export.rows[index] for index in range(min(32, len(export.rows)))]
    texts = [tokenizer.decode(row.input_ids.tolist(), skip_special_tokens=True) for row in rows]
    texts += [text for probe in PROBES for _, text in probe]
    vocabulary = gguf_vocabulary.read(tokenizer, config.vocab_size, texts)
    scratch = folder / ".merged"
    scratch.mkdir()
    how = write_merged(adapted, scratch, export.dtype, 1 << 30)
    facts = {
        "name": str(adapted.base.fingerprint.get("name")),
        "stop_ids": list(adapted.base.stop_ids),
        "pad_id": int(adapted.base.pad_id),
        "bos": tokenizer.bos_token_id,
        "begins_with_bos": begins_with_bos(tokenizer),
        "chat_template": chat_template(adapted) if talks(adapted) else None,
    }
    gguf_llama.write(scratch, folder / FILE, config, vocabulary, export.dtype, facts)
    shutil.rmtree(scratch)
    back = gguf_llama.ReadBack(folder / FILE)
    words = {"way": vocabulary.way, "texts": vocabulary.compared, "equal_ids": vocabulary.compared}
    checked = "tensors and metadata read back; computed in float32, not in llama.cpp"
    return {**how, "tokenizer": words, "checked": checked, **certify(adapted, back.logits, export.rows, export.dtype)}
