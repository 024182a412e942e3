"""Answers by generation: the same prompts for base and tuned model, decoded by cutting ids, never by replacing text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from luthier.core.seeding import derive, generator
from luthier.core.types import IGNORE, Example, Row
from luthier.engine.batch import from_rows
from luthier.evaluate.scores import Answers
from luthier.models import decode, forward

PROMPT_SHARE = 0.25
"""Of a plain document: how much of it is the prompt of a sample."""
COLOURED = 3
"""Samples with token-level losses."""
LONGEST_CHARACTER = 8
"""Tokens that are waited for until they make a whole character."""
MOST_COLOURED_TOKENS = 400


def example_of(row_id: str, examples: Mapping[str, Example]) -> Example | None:
    """The example of a row; windows of a document are called `id#0`, `id#1`."""
    return examples.get(row_id) or examples.get(row_id.rpartition("#")[0])


def choose(rows: Sequence[Row], examples: Mapping[str, Example], count: int, seed: int) -> list[int]:
    """Indices of at most `count` rows that can be asked and have a reference, drawn by the seed."""
    order = generator(seed, "answers").permutation(len(rows)).tolist()
    found = []
    for index in order:
        example = example_of(rows[index].id, examples)
        if example is not None and example.reference:
            found.append(index)
        if len(found) >= count:
            break
    return found


def prompts(
    adapted: Any, rows: Sequence[Row], examples: Mapping[str, Example], places: Sequence[int]
) -> list[list[int]]:
    """The ids that the model is asked with: byte-identical with the beginning of a training row."""
    tokenizer = adapted.base.tokenizer
    made = []
    for index in places:
        example = example_of(rows[index].id, examples)
        if example is not None and example.reference:
            made.append(list(adapted.template.prompt_ids(example.prompt, tokenizer)))
        else:
            ids = rows[index].input_ids.tolist()
            made.append(ids[: max(1, int(len(ids) * PROMPT_SHARE))])
    return made


def reference(adapted: Any, row: Row, examples: Mapping[str, Example]) -> str:
    """The answer of the data, or the rest of a plain document."""
    example = example_of(row.id, examples)
    if example is not None and example.reference:
        return example.reference
    ids = row.input_ids.tolist()
    cut = max(1, int(len(ids) * PROMPT_SHARE))
    return decode.text_of(adapted.base.tokenizer, ids[:cut], ids[cut:])


def answer(
    adapted: Any,
    asked: Sequence[Sequence[int]],
    places: Sequence[int],
    references: Sequence[str],
    limit: int,
    *,
    tasks: Sequence[int] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Answers:
    """Generate for these prompts with the model as it is; `tasks` as in `decode.generate`."""
    adapted.eval()
    made = decode.generate(
        adapted,
        asked,
        max_new_tokens=limit,
        stop_ids=adapted.base.stop_ids,
        temperature=temperature,
        seed=derive(seed, "samples"),
        tasks=tasks,
    )
    tokenizer = adapted.base.tokenizer
    texts = [decode.text_of(tokenizer, ids, one.ids) for ids, one in zip(asked, made, strict=True)]
    return Answers(list(places), [list(ids) for ids in asked], texts, [one.finish for one in made], list(references))


@torch.no_grad()
def token_losses(adapted: Any, row: Row) -> list[list[Any]]:
    """[[text, base nats, tuned nats]] of the row's supervised tokens; tokens of one character are added up."""
    batch = from_rows([Row(row.id, row.input_ids, row.labels, None, row.task)]).to(adapted.device)

    def measure() -> list[float]:
        return forward.token_nll(adapted.base, adapted.hidden(batch), batch.targets).tolist()

    adapted.eval()
    tuned = measure()
    with adapted.off():
        base = measure()
    ids = row.input_ids.tolist()
    kept = [place for place, target in enumerate(batch.targets.tolist()) if target != IGNORE]
    kept = kept[:MOST_COLOURED_TOKENS]
    made = []
    for places in _characters(adapted.base.tokenizer, ids, kept):
        start, end = places[0] + 1, places[-1] + 2
        text = decode.text_of(adapted.base.tokenizer, ids[:start], ids[start:end])
        name = text or "".join(adapted.base.tokenizer.convert_ids_to_tokens(ids[start:end]))  # a stop token has no text
        made.append([name, *(round(sum(losses[place] for place in places), 4) for losses in (base, tuned))])
    return made


def _characters(tokenizer: Any, ids: list[int], places: list[int]) -> list[list[int]]:
    """Places that belong together: byte-level tokens of one character have a text only together."""
    found: list[list[int]] = []
    open_, special = False, set(tokenizer.all_special_ids)
    for place in places:
        if open_ and found[-1][-1] == place - 1 and ids[place + 1] not in special:
            found[-1].append(place)
        else:
            found.append([place])
        start, end = found[-1][0] + 1, place + 2
        text = decode.text_of(tokenizer, ids[:start], ids[start:end])
        open_ = ids[place + 1] not in special and (not text or text.endswith("\ufffd"))
        open_ = open_ and len(found[-1]) < LONGEST_CHARACTER
    return found
