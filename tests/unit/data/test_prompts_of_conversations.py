"""The prompt of a longer conversation is the very beginning of the training row that goes on with the answer."""

import pytest

from luthier.core.types import Example, Source, Turn
from luthier.data.encode import encode
from luthier.data.settings import DataSettings
from luthier.data.templates import choose
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings


@pytest.mark.parametrize("name", ["chat", "alpaca", "plain"])
def test_stop_tokens_of_earlier_answers(name):
    base = load_base(ModelSettings(path="builtin"))
    template = choose("auto" if name == "chat" else name, base.tokenizer, "instruct")
    asked = (Turn("user", "Hi there"), Turn("assistant", "Yes, 12"), Turn("user", "and 中文"))
    turns = (*asked, Turn("assistant", "ok"))
    example = Example("a", turns, Source("x", 1))
    rows = encode(
        [example],
        template,
        base.tokenizer,
        DataSettings(train="x"),
        "instruct",
        labels=None,
        stop_id=base.stop_ids[0],
    )
    prompt = template.prompt_ids(asked, base.tokenizer)
    row = rows[0]
    assert prompt.count(base.stop_ids[0]) == 1
    assert row.input_ids.tolist()[: len(prompt)] == prompt
    assert len(row.input_ids) > len(prompt)
