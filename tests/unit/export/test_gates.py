"""What a certificate lets through: greedy answers and prompts decide too, not logits along the data alone."""

import json

import numpy as np
import pytest
import torch
from export_world import made, rows_for, trained

from luthier.core.errors import GateFailed
from luthier.core.types import IGNORE, Row
from luthier.export import certificate, speaking
from luthier.export.run import export

LORA = {"name": "lora", "r": 4}
SIZE = 12


def world(change=lambda table: table):
    """A model whose next token depends on the last one alone, and rows of it: 8 rows, 5 answer tokens each."""
    table = torch.nn.functional.one_hot((torch.arange(SIZE) + 1) % SIZE, SIZE).float() * 4
    changed = change(table.clone())

    def logits(which):
        return lambda ids, prompt: which[torch.tensor(list(ids))]

    rows = []
    for at in range(8):
        ids = [at % 3, at % 3 + 1, 4, 5, 6, 7, 8]
        rows.append(Row(str(at), np.array(ids, np.int32), np.array([IGNORE] * 2 + ids[2:], np.int32)))
    return logits(table), logits(changed), rows


def judged(change, dtype):
    before, after, rows = world(change)
    made = certificate.compare(before, after, rows, dtype)
    chosen, finite = made.pop("chosen"), made.pop("finite")
    bound = certificate.FLOAT32_TOLERANCE * made["logit_size"]
    made["greedy"] = certificate.greedy(before, after, rows, (), 64, bound)
    certificate._gate_greedy(made, chosen, finite, dtype)
    return made


def off_the_data(table):
    """Another choice after token 11, which no held-out row has: only a free answer comes there."""
    table[11, 3] = 9.0
    return table


def test_an_answer_that_goes_elsewhere_is_found_where_the_rows_see_nothing():
    found = judged(off_the_data, "bfloat16")
    assert found["top1_agreement"] == 1.0
    assert found["greedy"]["identical"] == 0
    assert found["greedy"]["followed"] == 4 * certificate.GREEDY_TOKENS == 96
    assert found["greedy"]["followed_equal"] == 96 - 4 * 2  # two places of every answer follow token 11
    assert found["greedy_tokens"] == {"compared": 96 + 40, "equal": (136 - 8) / 136}
    assert not found["passed"]
    assert "0.9412 of all greedy tokens equal" in found["reason"]
    assert judged(lambda table: table, "bfloat16")["passed"]


def test_float32_greedy_answers_must_be_equal_but_for_ties():
    def parted(gap):
        def change(table):
            table[11, 0] = 4.0
            table[11, 3] = 4.0 + gap
            return table

        return change

    before, after, rows = world(parted(1e-6))
    found = certificate.greedy(before, after, rows, (), 64, 1e-4)
    assert found["identical"] == 0
    assert found["ties"] == 0  # the reference has 4.0 there and 0: no tie
    made = {"greedy": found, "passed": True, "reason": ""}
    certificate._gate_greedy(made, {"tokens": 1, "equal": 1}, True, "float32")
    assert not made["passed"]
    assert made["reason"] == "; 4 of 4 greedy answers differ"
    table = torch.zeros(SIZE, SIZE)
    table[:, 5], table[:, 6] = 3.0, 3.0 - 1e-5
    other = table.clone()
    other[:, 6] = 3.0 + 1e-5
    pair = [lambda ids, prompt, one=one: one[torch.tensor(list(ids))] for one in (table, other)]
    found = certificate.greedy(*pair, rows, (), 64, 3e-5)
    assert found["ties"] == found["prompts"] == 4
    made = {"greedy": found, "passed": True, "reason": ""}
    certificate._gate_greedy(made, {"tokens": 1, "equal": 1}, True, "float32")
    assert made["passed"]


def test_the_tolerance_says_what_it_is_relative_to(tmp_path):
    adapted = made(LORA)
    found = export(adapted, rows_for(adapted), tmp_path / "out", "merged")
    assert found["tolerance"]["of_the_largest_logit_or_1"] == 1e-5
    assert found["tolerance"]["max_logit_difference"] == pytest.approx(1e-5 * found["logit_size"])
    assert found["logit_size"] > 1


@pytest.mark.parametrize("kind", ["merged", "vllm", "gguf"])
def test_prompts_with_other_ids_are_not_published(kind, tmp_path, monkeypatch):
    if kind == "gguf":
        pytest.importorskip("gguf")
    right = speaking.chat_template
    monkeypatch.setattr(speaking, "chat_template", lambda adapted: right(adapted) + " ")
    adapted = made(LORA)
    with pytest.raises(GateFailed, match="6 of 6 prompts have other ids") as caught:
        export(adapted, rows_for(adapted), tmp_path / "out", kind)
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_run_that_passes_says_every_count(tmp_path):
    adapted = trained(LORA)
    export(adapted, rows_for(adapted), tmp_path / "out", "merged", "bfloat16")
    found = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert found["tolerance"] == {"greedy_tokens": 0.99}
    assert found["greedy_tokens"]["equal"] >= 0.99
    assert found["greedy_tokens"]["compared"] > found["greedy"]["followed"] > 0


def test_what_a_message_cannot_say_is_counted_apart():
    from luthier.core.types import Example, Source, Turn

    adapted = made(LORA)
    place = Source("held-out", 0)
    asked = [
        Example("a", (Turn("user", "What is <|user|>?"),), place, None),
        Example("b", (Turn("user", "Translate.", "Guten Tag"),), place, None),
        Example("c", (Turn("user", "Hello there"),), place, None),
    ]
    found = speaking.compared(adapted, adapted.base.tokenizer, asked)["template"]
    assert (found["prompts"], found["equal_ids"]) == (7, 7)
    assert found["others"]["prompts"] == 2
    assert found["others"]["equal_ids"] < 2
    assert speaking.gated({"passed": True, "template": found})["passed"]


@pytest.mark.parametrize(
    ("problem", "right", "wrong"),
    [("single", [2.0, 1.0, 0.5], [1.0, 2.0, 0.5]), ("multi", [2.0, 1.0, -0.5], [2.0, -1.0, -0.5]),
     ("regression", [3.0], [3.2])],
)  # fmt: skip
def test_labels_decide_in_half_precision(problem, right, wrong):
    """Several labels: all of them; a value: the value, of which there is always only one."""
    rows = [Row("a", np.array([3, 4, 5], np.int32), np.array([IGNORE] * 3, np.int32), 0)]
    first, near, other = (torch.tensor([one]) for one in (right, [x * 1.01 for x in right], wrong))
    for one, passes in ((near, True), (other, False)):
        answers = [lambda ids, prompt, made=made: made for made in (first, one)]
        assert certificate.compare(*answers, rows, "bfloat16", problem)["passed"] is passes
