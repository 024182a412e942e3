"""One GGUF file for llama.cpp and its relatives, read back and computed with before it is published."""

from __future__ import annotations

import copy
import json
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
        (folder / "README.md").write_text(model_card(export, "gguf", _told(found)), "utf-8")
        return found


def _told(found: Mapping[str, Any]) -> str:
    from luthier.core.redact import visible

    line, more = "`llama-cli -m model.gguf`", found["stop_ids"].get("not_held", ())
    if not more:
        return line
    words = ", ".join(json.dumps(visible(one), ensure_ascii=False) for one in more)
    return f"{line}\n\nGGUF holds three stop tokens. The run ends answers at {words} too: give those to the program."


def write_gguf(export: Export, folder: Path) -> dict[str, Any]:
    """`model.gguf` in `folder`; certified by arithmetic on the file's own tensors and metadata."""
    from luthier.data.templates.base import begins_with_bos
    from luthier.export import gguf_llama, gguf_vocabulary
    from luthier.export.certificate import certify
    from luthier.export.fold import refuse_unmergeable, write_merged
    from luthier.export.speaking import PROBES, chat_template, compared, gated, talks

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
    source = chat_template(adapted) if talks(adapted) else None
    facts = {
        "name": str(adapted.base.fingerprint.get("name")),
        "stop_ids": list(adapted.base.stop_ids),
        "pad_id": int(adapted.base.pad_id),
        "bos": tokenizer.bos_token_id,
        "begins_with_bos": begins_with_bos(tokenizer),
        "chat_template": source,
    }
    gguf_llama.write(scratch, folder / FILE, config, vocabulary, export.dtype, facts)
    shutil.rmtree(scratch)
    back = gguf_llama.ReadBack(folder / FILE)
    words = {"way": vocabulary.way, "texts": vocabulary.compared, "equal_ids": vocabulary.compared}
    checked = "tensors and metadata read back; computed in float32, not in llama.cpp"
    how |= {"tokenizer": words, "checked": checked, "stop_ids": _stops(adapted, back.fields)}
    if source is not None:
        spoken = copy.deepcopy(tokenizer)
        spoken.chat_template = source
        how |= compared(adapted, spoken, export.examples)
    return gated({**how, **certify(adapted, lambda ids, _: back.logits(ids), export.rows, export.dtype)})


def _stops(adapted: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the run's stop tokens stand in the file, read back; the others by name, for `--reverse-prompt`."""
    from luthier.export.gguf_llama import STOPS

    keys = [f"tokenizer.ggml.{key}_token_id" for key in STOPS]
    held = [int(fields[key]) for key in keys if key in fields]
    left = [one for one in adapted.base.stop_ids if one not in held]
    told = {"held": held}
    return told if not left else {**told, "not_held": adapted.base.tokenizer.convert_ids_to_tokens(left)}
