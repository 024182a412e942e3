"""How a bundle's script asks the model: the prompt as token ids, the labels, and the ids of training beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.types import IGNORE, Example, Source, Turn

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.export.base import Export

MARK = "\ue100\ue101"
"""Stands for the text while the frame around it is read off the template."""
MOST_TEXTS = 32


def prompt_facts(adapted: AdaptedModel, dtype: str, templated: bool) -> dict[str, Any]:
    """prompt.json. `templated`: the folder's chat template builds the very ids of training, for templates whose text
    around a turn is not constant. ModelError where the script could not ask as training did."""
    from luthier.data.templates.base import ANCHOR
    from luthier.export import shape
    from luthier.export.certificate import loader_name
    from luthier.export.speaking import talks

    window = adapted.base.anatomy.window - adapted.attached.virtual_tokens
    spoken = bool(adapted.task.spoken)
    made: dict[str, Any] = {"dtype": dtype, "loader": loader_name(adapted), "anchor": ANCHOR}
    made |= {"labels": list(adapted.labels), "has_head": adapted.task.has_head, "problem": adapted.problem}
    made |= {"endings": adapted.label_ids if spoken else []}
    made |= {"normalize": adapted.task.params.normalize if spoken else "none"}
    made |= {"limit": min(window, adapted.max_length) if adapted.labels else window}
    made |= {"stop_ids": list(adapted.base.stop_ids), "start": None, "shape": None, "frame": None}
    if adapted.base.kind == "encoder_decoder":
        from luthier.models.seq2seq import start_token

        made["start"] = start_token(adapted.base)
    if adapted.labels or not talks(adapted):
        made["frame"] = _frame(adapted)
        return made
    found = shape.of_ids(adapted.template, adapted.base.tokenizer)
    if found is not None:
        around = {role: [list(before), list(after)] for role, (before, after) in found.around.items()}
        parts = {"start": list(found.start), "default": list(found.default), "around": around}
        made["shape"] = {**parts, "opening": list(found.opening)}
    elif not templated:
        raise _refused("this chat template cannot be written down")
    return made


def _refused(why: str) -> ModelError:
    return ModelError(
        f"the bundle's script could not ask as training did: {why}",
        where="data.template",
        remedy="--as adapter, or `luthier serve`",
    )


def _frame(adapted: AdaptedModel) -> dict[str, Any]:
    """What stands around a text to be labelled, or before a document: ids, and what is tokenised with the text."""
    from luthier.data.templates.base import begins_with_bos, ids_of, tokenize

    tokenizer: Any = adapted.base.tokenizer
    template: Any = adapted.template
    template = template.bound(tokenizer) if hasattr(template, "bound") else template
    role = "user" if adapted.labels else "text"
    example = Example("", (Turn(role, MARK),), Source("bundle", 0), adapted.labels[0] if adapted.labels else None)
    turns = adapted.task.spoken.turns(example)[:-1] if adapted.task.spoken else example.turns
    pieces = template.prompt(turns)
    if adapted.task.has_head:
        pieces = [piece for piece in pieces if piece.text.strip() or not piece.control]
    places = [at for at, piece in enumerate(pieces) if MARK in piece.text]
    if len(places) != 1 or pieces[places[0]].text.count(MARK) != 1 or any(piece.stop for piece in pieces):
        raise _refused("this template puts the text in several places")
    at = places[0]
    first, _, last = pieces[at].text.partition(MARK)
    before = ids_of(pieces[:at], tokenizer) if at else begins_with_bos(tokenizer)
    after = [one for piece in pieces[at + 1 :] for one in tokenize(tokenizer, [piece.text], piece.control)[0]]
    return {"before": before, "text": [first, last], "after": [int(one) for one in after]}


def prompts(export: Export) -> list[tuple[list[dict[str, str]], list[int]]]:
    """Conversations with the ids that training gave them."""
    from luthier.data.templates.base import joined
    from luthier.export import shape
    from luthier.export.speaking import PROBES, conversations, talks

    adapted = export.adapted
    held_out = [export.examples[index] for index in range(min(MOST_TEXTS, len(export.examples)))]
    if adapted.labels:
        texts = [probe[0][1] for probe in PROBES if len(probe) == 1]
        texts += [one.turns[-1].text for one in held_out if len(one.turns) == 1 and not one.turns[0].context]
        return [([{"role": "user", "content": text}], ids) for text, ids in _labelled(adapted, texts)]
    if not talks(adapted):
        asked = [(probe[0][1], (Turn("text", probe[0][1]),)) for probe in PROBES if len(probe) == 1]
        return [([{"role": "user", "content": text}], adapted.prompt_ids(turns)) for text, turns in asked]
    found = shape.of_ids(adapted.template, adapted.base.tokenizer)
    if found is None:
        return []  # the chat template's own comparison stands for these
    made = []
    for turns in conversations(adapted, export.examples):
        if all(turn.role in found.around and not turn.context for turn in turns):
            made.append(([{"role": t.role, "content": joined(t)} for t in turns], adapted.prompt_ids(turns)))
    return made


def _labelled(adapted: AdaptedModel, texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """(text, ids of its row before the label) for texts that fit whole."""
    from luthier.data.encode import encode
    from luthier.data.settings import DataSettings

    any_label: Any = {"multi": (), "regression": 0.0}.get(adapted.problem, adapted.labels[0])
    asked = [Example(str(at), (Turn("user", t),), Source("bundle", 0), any_label) for at, t in enumerate(texts)]
    settings = DataSettings(train="bundle", max_length=adapted.max_length, truncate="drop")
    options: dict[str, Any] = {"labels": adapted.labels, "stop_id": adapted.base.stop_ids[0]}
    options["spoken"] = adapted.task.spoken
    if adapted.tasks:
        options["tasks"] = adapted.tasks[:1]
    rows = encode(asked, adapted.template, adapted.base.tokenizer, settings, "classify", **options)
    made = []
    for at in range(len(rows)):
        row = rows[at]
        ids = row.input_ids if adapted.task.has_head else row.input_ids[row.labels == IGNORE]
        made.append((texts[int(row.id)], [int(one) for one in ids]))
    return made
