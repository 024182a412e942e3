"""T5: prompts through the encoder, answers through the decoder, for every kind of method; from a recipe too."""

from __future__ import annotations

import json
from pathlib import Path

import cells as battery
import models as tiny
import numpy as np
import pytest
import torch

from luthier.core.errors import ModelError
from luthier.core.types import IGNORE, Row
from luthier.engine.batch import from_rows
from luthier.methods import METHODS
from luthier.models import decode, forward

ANSWERS = ((7, 8, 9), (30, 31), (12, 60, 13, 14))


def rows() -> list[Row]:
    """Three prompts with an answer and the stop token."""
    made = []
    for index, answer in enumerate(ANSWERS):
        prompt = [20 + index, 40, 41 + index][: index + 1]
        ids = np.array([*prompt, *answer, 2], np.int32)
        labels = np.where(np.arange(len(ids)) < len(prompt), IGNORE, ids).astype(np.int32)
        made.append(Row(f"r{index}", ids, labels))
    return made


def test_states_are_those_of_the_model_itself() -> None:
    """Loss of a batch of rows = transformers' own loss of each row, token by token."""
    base = tiny.base("t5")
    given = from_rows(rows())
    with torch.no_grad():
        nll = forward.token_nll(base, forward.hidden(base, given), given.targets)
        wanted = 0.0
        for index, row in enumerate(rows()):
            prompt, answer = torch.tensor(row.input_ids[: index + 1])[None], torch.tensor(row.input_ids[index + 1 :])
            wanted += float(base.model(input_ids=prompt.long(), labels=answer.long()[None]).loss) * len(answer)
    assert float(nll.sum()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "lora", "r": 8},
        {"name": "prefix", "length": 4},
        {"name": "bottleneck", "size": 16},
        {"name": "prompt", "length": 4},
    ],
    ids=lambda spec: spec["name"],
)
def test_what_was_learnt_is_said(spec: dict[str, object]) -> None:
    """Three answers are trained, then generated in one batch, stop token included."""
    base = tiny.base("t5")
    with torch.no_grad():  # a random head is too flat to be sure of anything
        base.model.get_submodule("decoder.final_layer_norm").weight.mul_(40)
    attached = METHODS.parse(spec).attach(base, 0)
    given = from_rows(rows())
    begin = None
    optimizer = torch.optim.AdamW(attached.parameters().values(), lr={"prompt": 0.3}.get(str(spec["name"]), 3e-2))
    for _ in range(120):
        optimizer.zero_grad()
        hidden = forward.hidden(base, given, attached.virtual(given))
        loss = forward.token_nll(base, hidden, given.targets).sum() / given.supervised
        begin = begin or float(loss.detach())
        loss.backward()
        optimizer.step()
    if spec["name"] == "prompt":  # few numbers before a random encoder: it learns, but not to the end
        assert float(loss.detach()) < 0.8 * begin
        return
    assert float(loss.detach()) < 0.05

    class Answers:
        def __init__(self) -> None:
            self.base = base
            self.virtual = attached.virtual

    prompts = [row.input_ids[: index + 1].tolist() for index, row in enumerate(rows())]
    made = decode.generate(Answers(), prompts, max_new_tokens=6, stop_ids=[2])
    assert [one.ids for one in made] == [[*answer, 2] for answer in ANSWERS]


def test_stock_peft_repeats_the_prefix_of_every_second_layer(tmp_path: Path) -> None:
    """PEFT 0.21 cuts the doubled list of keys and values by fours: layer 1 gets layer 0's. So the format is ours."""
    from peft import PeftModel

    cell = battery.Cell("prefix", "t5", False)
    base = cell.base()
    attached = METHODS.parse(cell.spec).attach(base, 0)
    battery.shake(attached)
    attached.save(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    assert config["peft_type"] == "LUTHIER_PREFIX"
    file.write_text(json.dumps(config | {"peft_type": "PREFIX_TUNING", "num_transformer_submodules": 2}))
    with pytest.raises(ModelError, match="layer 2 i"):
        METHODS.get("prefix").reload(tmp_path, cell.base())
    with torch.no_grad():
        theirs = battery.peft_outputs(cell, tmp_path)
        table = attached.own["prompt_embeddings"]
        half = table.shape[1] // 2
        table[:, half:] = table[:, :half]
        assert torch.allclose(theirs, battery.outputs(base, attached), atol=1e-5)
    assert isinstance(PeftModel, type)


def test_a_recipe_trains_answers_and_reloads(tmp_path: Path) -> None:
    """The whole story on a T5 folder."""
    import luthier as lu

    data = tmp_path / "train.jsonl"
    lines = [{"prompt": f"w{i} w{i + 1}", "response": f"w{i + 2} w{i + 3}"} for i in range(40)]
    data.write_text("\n".join(map(json.dumps, lines)))
    recipe = lu.Recipe.parse(
        f"model: {{path: {tiny.folder('t5')}}}\ntask: instruct\ndata: {{train: {data}, template: plain}}\n"
        "method: {name: lora, r: 4}\ntrain: {steps: 3, batch_size: 4, threads: 1}\n"
        "evaluate: {samples: {count: 1, max_new_tokens: 4}, generate_rows: 2}\n"
    )
    run = lu.run(recipe, run_dir=tmp_path / "run")
    assert run.metrics["tuned"]["loss"] < run.metrics["base"]["loss"]
    again = lu.load(tmp_path / "run")
    assert isinstance(again.generate("w5 w6", max_new_tokens=4), str)
