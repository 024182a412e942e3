"""`response_format`: every answer is JSON, of the schema, greedy or drawn, plain or streamed, alone or in company."""

import concurrent.futures
import json

import httpx
import openai
import pytest
import torch
from serving_world import running, settled

from luthier.serve.adapters import Served
from luthier.serve.constrained import grammar
from luthier.serve.schema import ApiError, ResponseFormat

QUESTION = [{"role": "user", "content": "Where does Ada Moser live?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}


@pytest.fixture(scope="module")
def server(base, adapters):
    with running(base, {"lora-a": adapters.folders["lora-a"], "prefix-a": adapters.folders["prefix-a"]}) as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client, form, **options):
    given = {"model": "lora-a", "messages": QUESTION, "temperature": 0, "max_tokens": 120, **options}
    return client.chat.completions.create(response_format=form, **given)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("model", ["base", "lora-a", "prefix-a"])
def test_an_answer_keeps_to_its_schema(client, model, temperature):
    """Name and age, of any model, however it is drawn; the last bracket is part of the answer."""
    made = ask(client, STRICT, model=model, temperature=temperature, seed=3, n=2)
    for choice in made.choices:
        found = json.loads(choice.message.content)
        assert set(found) == {"name", "age"}
        assert len(found["name"]) <= 8
        assert 0 <= found["age"] <= 99
        assert choice.finish_reason == "stop"


def test_any_object_where_no_schema_is_given(client):
    """An object, or the beginning of one where the tokens ran out."""
    for seed in range(4):
        choice = ask(client, {"type": "json_object"}, temperature=1, seed=seed).choices[0]
        assert choice.message.content.lstrip().startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


def test_company_changes_nothing(client):
    """Answers with and without a schema in one batch are those they are alone, and the streamed one is the same."""

    def one(number):
        form = STRICT if number % 2 else {"type": "text"}
        options = {"model": ("base", "lora-a", "prefix-a")[number % 3], "max_tokens": 60}
        return ask(client, form, **options).choices[0].message.content

    alone = [one(number) for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(6))) == alone
    chunks = list(ask(client, STRICT, model="base", max_tokens=60, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == alone[3]


def test_the_client_parses_into_its_own_type(client):
    """The helper of OpenAI's client for pydantic types works unchanged."""
    from pydantic import BaseModel, ConfigDict, Field

    class Person(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: str = Field(max_length=8)
        age: int = Field(ge=0, le=99)

    made = client.chat.completions.parse(
        model="lora-a", messages=QUESTION, response_format=Person, temperature=0, max_tokens=120
    )
    assert isinstance(made.choices[0].message.parsed, Person)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema"},
        {"type": "json_object", "json_schema": {"name": "x", "schema": {}}},
        {"type": "xml"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "number", "minimum": 5, "maximum": 1}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://example.com/x"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["y" * 70_000]}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "("}}},
    ],
    ids=["no schema", "two kinds", "unknown", "wrong type", "empty set", "far reference", "long", "broken pattern"],
)
def test_a_schema_that_cannot_be_held_is_refused(server, form):
    """400 that names the field, before anything is made; nothing is fetched."""
    body = {"model": "base", "messages": QUESTION, "max_tokens": 5, "response_format": form}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("response_format")
    settled(server)


def test_a_schema_too_deep_is_refused(base):
    """Recursion in the compiler ends as 400."""
    schema = {"type": "string"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    wanted = ResponseFormat(type="json_schema", json_schema={"name": "x", "schema": schema})
    with pytest.raises(ApiError, match="recursion"):
        grammar(Served("base", None, base), wanted)


def test_what_the_grammar_forbids_is_minus_infinity(base):
    """Only an opening bracket or white space begins an object; wider logits than the vocabulary are shut out too."""
    walk = grammar(Served("base", None, base), ResponseFormat(type="json_object")).walk()
    width = base.model.get_input_embeddings().weight.shape[0]
    open_to = torch.isfinite(walk.masked(torch.zeros(width + 7)))
    texts = {base.tokenizer.decode([number]) for number in open_to.nonzero()[:, 0].tolist()}
    assert any(text.strip().startswith("{") for text in texts)
    assert all(not text.strip() or text.strip().startswith("{") for text in texts)
    assert not open_to[width:].any()
    with pytest.raises(RuntimeError):
        walk.take(base.tokenizer.convert_tokens_to_ids("a"))
