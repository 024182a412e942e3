"""JSON null is a field that was not given: OpenAI's client sends None as null."""

import pytest
from pydantic import ValidationError

from luthier.serve.schema import AdapterLoad, Chat, Classify, Completion

SHARED = ("temperature", "top_p", "top_k", "n", "seed", "stop", "stream", "stream_options", "frequency_penalty",
          "presence_penalty", "user", "tools", "logit_bias", "logprobs", "max_tokens", "something_else")  # fmt: skip
ASKED = {
    Chat: ({"model": "base", "messages": [{"role": "user", "content": "a"}]},
           (*SHARED, "top_logprobs", "max_completion_tokens", "response_format")),
    Completion: ({"model": "base", "prompt": "a"}, (*SHARED, "echo", "best_of", "suffix")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ASKED)
def test_every_field_may_be_null(kind):
    """One by one and all together: the same request as without."""
    least, names = ASKED[kind]
    plain = kind(**least).model_dump()
    for name in names:
        assert kind(**least, **{name: None}).model_dump() == plain, name
    assert kind(**least, **dict.fromkeys(names)).model_dump() == plain
    assert kind(**least, stream_options={"include_usage": None}).stream_options.include_usage is False


def test_what_must_be_there_may_not_be_null():
    wrong = {
        Chat: {"model": "base", "messages": None},
        Completion: {"model": None, "prompt": "a"},
        Classify: {"model": "base", "input": None},
        AdapterLoad: {"name": "x", "path": None},
    }
    for kind, body in wrong.items():
        with pytest.raises(ValidationError, match="Field required"):
            kind(**body)


def test_the_schema_says_so():
    fields = Chat.model_json_schema()["properties"]
    for name in ("temperature", "n", "stream", "top_logprobs", "stop"):
        assert {"type": "null"} in fields[name]["anyOf"], name
    assert fields["temperature"]["default"] == 1.0
    assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert fields["model"]["type"] == "string"
