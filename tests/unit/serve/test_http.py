"""The server as OpenAI's own client and plain HTTP see it (SERVING 7, rows 9–15; contract 6)."""

import concurrent.futures
import json
import socket
import time

import httpx
import openai
import pytest
from serving_world import delete, get, running, settled

from luthier.adapted import load

SERVED = ("lora-a", "prefix-a", "prompt", "bottleneck", "p_tuning")
QUESTION = [{"role": "user", "content": "Where does Ada Moser live?"}]


@pytest.fixture(scope="module")
def server(base, adapters, classifier):
    folders = {name: adapters.folders[name] for name in SERVED}
    with running(base, {**folders, "clubs": classifier}, adapters.root) as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def post(server, path, /, **body):
    return httpx.post(f"{server.url}{path}", json=body, timeout=300)


def test_models_are_the_base_and_every_adapter_without_paths(client):
    listed = client.models.list().data
    assert {one.id for one in listed} == {"base", "clubs", *SERVED}
    assert "/" not in json.dumps([one.id for one in listed])


def test_one_model_by_its_name(client):
    for name in ("base", "lora-a"):
        assert client.models.retrieve(name) == next(one for one in client.models.list().data if one.id == name)
    for name in ("nobody", "lora-a/x"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert caught.value.code == "model_not_found"


def test_a_name_with_a_slash_or_a_colon(base):
    with running(base, {}, name="maker/model:2") as made:
        asked = openai.OpenAI(base_url=f"{made.url}/v1", api_key="x", max_retries=0)
        assert asked.models.retrieve("maker/model:2").id == "maker/model:2"


@pytest.mark.parametrize("name", SERVED)
def test_an_answer_is_what_generate_says(client, adapters, name):
    made = client.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=12)
    assert made.choices[0].message.content == load(adapters.folders[name]).generate(
        QUESTION[0]["content"], max_new_tokens=12
    )
    assert made.usage.completion_tokens <= 12
    assert made.choices[0].finish_reason in ("stop", "length")


def test_all_at_once_are_what_they_are_alone(client):
    def ask(name):
        options = {"model": name, "messages": QUESTION, "temperature": 0, "max_tokens": 10}
        return client.chat.completions.create(**options).choices[0].message.content

    names = ["base", *SERVED] * 3
    one_by_one = [ask(name) for name in names]
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(ask, names)) == one_by_one
    assert len(set(one_by_one)) > 3


def test_a_stream_is_the_same_text_and_ends_with_usage(client):
    options = {"model": "lora-a", "messages": QUESTION, "temperature": 0.8, "seed": 3, "max_tokens": 16}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_completions_take_text_and_token_ids(client, base):
    text = "Ada Moser lives in"
    said = client.completions.create(model="base", prompt=text, temperature=0, max_tokens=6)
    ids = base.tokenizer(text)["input_ids"]
    again = client.completions.create(model="base", prompt=ids, temperature=0, max_tokens=6)
    assert said.choices[0].text == again.choices[0].text
    several = client.completions.create(model="base", prompt=[text, "Hello"], temperature=0, max_tokens=3)
    assert [choice.index for choice in several.choices] == [0, 1]
    both = [ids, base.tokenizer("Hello")["input_ids"]]
    as_ids = client.completions.create(model="base", prompt=both, temperature=0, max_tokens=3)
    assert [choice.text for choice in as_ids.choices] == [choice.text for choice in several.choices]


def test_n_seeds_stops_and_logprobs(client):
    options = {"model": "base", "messages": QUESTION, "temperature": 1.2, "max_tokens": 12}
    first = client.chat.completions.create(**options, n=3, seed=7)
    again = client.chat.completions.create(**options, n=3, seed=7)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    greedy = client.completions.create(model="base", prompt="Ada Moser lives in", temperature=0, max_tokens=12)
    stop = greedy.choices[0].text.strip()[2:5]
    cut = client.completions.create(model="base", prompt="Ada Moser lives in", temperature=0, max_tokens=12, stop=stop)
    assert stop not in cut.choices[0].text
    assert greedy.choices[0].text.startswith(cut.choices[0].text)
    assert cut.choices[0].finish_reason == "stop"
    logs = client.chat.completions.create(**options, logprobs=True, top_logprobs=3, seed=1).choices[0].logprobs.content
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 3 for one in logs)


def test_errors_are_told_by_class(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    for wrong in (
        {"temperature": 3},
        {"max_tokens": 100_000},
        {"stop": ["a"] * 5},
        {"n": 0},
        {"tools": [{"type": "function"}]},
    ):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="base", messages=QUESTION, **wrong)


USER = {"role": "user", "content": "a"}
NAMED = {
    "tools": {"tools": [{"type": "function"}]},
    "logit_bias": {"logit_bias": {"1": 5}},
    "functions": {"functions": [{"name": "f"}]},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "temperature": {"temperature": "hot"},
    "stop": {"stop": ["a"] * 5},
    "top_logprobs": {"top_logprobs": 3},
    "max_tokens": {"max_tokens": 100_000},
    "model": {"model": None},
    "response_format.json_schema": {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
    "stream_options.include_usage": {"stream_options": {"include_usage": "perhaps"}},
    "messages": {"messages": []},
    "messages.1.role": {"messages": [USER, {"role": "robot", "content": "a"}]},
    "messages.0.content": {"messages": [{"role": "user", "content": 5}]},
    "messages.0.content.1.type": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
                                                                            {"type": "image_url"}]}]},
    "messages.1.tool_calls": {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_an_error_names_its_field(server, name):
    body = {"model": "base", "messages": [USER], **NAMED[name]}
    answer = post(server, "/v1/chat/completions", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name


def test_fields_that_are_null_or_empty_are_not_given(server):
    """What OpenAI's client sends for None, and an assistant's message as it had come."""
    message = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None, "function_call": None}
    names = ("temperature", "top_p", "n", "stream", "logprobs", "top_logprobs", "frequency_penalty", "max_tokens",
             "stop", "tools", "response_format", "seed")  # fmt: skip
    body = {"model": "base", "messages": [USER, message, USER], "max_completion_tokens": 2, **dict.fromkeys(names)}
    answer = post(server, "/v1/chat/completions", **body)
    assert answer.status_code == 200, answer.text
    assert "x-luthier-ignored" not in answer.headers


def test_results_of_tools_need_a_template_that_knows_them(server, monkeypatch):
    told = {"role": "tool", "content": "42", "tool_call_id": "1"}
    body = {"model": "lora-a", "messages": [USER, told], "max_tokens": 1}
    adapted = server.registry.get("lora-a").adapted
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )

    def asked(source):
        params = adapted.template.params.model_copy(update={"source": source})
        monkeypatch.setattr(adapted, "template", type(adapted.template)(params))
        return post(server, "/v1/chat/completions", **body)

    refused = asked(source).json()["error"]
    assert (refused["param"], refused["code"]) == ("messages.1.role", "invalid_messages")
    taken = asked(source.replace("{{ m.role }}", "{{ 'result' if m.role == 'tool' else m.role }}"))
    assert taken.status_code == 200, taken.text
    assert taken.headers["x-luthier-ignored"] == "messages.tool_call_id"


def test_unknown_fields_are_named_wherever_they_stand(server):
    content = [{"type": "text", "text": "a", "cache_control": {}}]
    body = {"model": "base", "messages": [{"role": "user", "content": content, "name": "Ada"}], "max_tokens": 1,
            "stream_options": {"include_obfuscation": False}, "min_p": 0.1, "mirostat": None}  # fmt: skip
    answer = post(server, "/v1/chat/completions", **body)
    named = "messages.content.cache_control,messages.name,min_p,stream_options.include_obfuscation"
    assert answer.headers["x-luthier-ignored"] == named
    answer = post(server, "/v1/classify", model="clubs", input="Hello.", truncate=True)
    assert (answer.status_code, answer.headers["x-luthier-ignored"]) == (200, "truncate")
    answer = post(server, "/v1/adapters", name="new", path="lora-b", rank=4)
    assert (answer.status_code, answer.headers["x-luthier-ignored"]) == (200, "rank")
    assert delete(f"{server.url}/v1/adapters/new").status_code == 200


def test_plain_completions_keep_to_a_schema_too(client):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["left", "right"]}}}
    made = client.completions.create(
        model="base", prompt="Ada Moser lives", max_tokens=20, extra_body={"response_format": form}
    )
    assert json.loads(made.choices[0].text) in ("left", "right")


HOSTILE = (
    b"", b"{", b"[]", b"null", b'{"model": "base"}', b'{"model": "base", "messages": []}', b"\xff\xfe",
    b'{"model": "base", "prompt": "a", "top_p": 5e-324, "max_tokens": 2}',
    b'{"model": "base", "prompt": "a", "temperature": 5e-324, "max_tokens": 2}',
    b'{"model": "base", "prompt": "a", "max_tokens": 2.0}',
    b'{"model": "base", "prompt": "a", "max_tokens": true}',
    b'{"model": "base", "prompt": "a", "seed": 9223372036854775808}',
    b'{"model": "base", "prompt": [false], "max_tokens": 2}',
    b'{"model": "base", "prompt": [-1], "max_tokens": 2}',
    b'{"model": "base", "prompt": "", "max_tokens": 2}',
    b'{"model": "base", "prompt": "\\ud800", "max_tokens": 2}',
    b'{"model": "base", "prompt": "a", "temperature": NaN}',
    b'{"model": "base", "model": "base", "prompt": "a"}',
    b"[" * 100_000,
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_bodies_get_an_answer_in_openai_s_shape(server, number):
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = httpx.post(server.url + path, content=HOSTILE[number], timeout=300)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert get(f"{server.url}/readyz").status_code == 200


def test_a_classification_run_gives_labels(server, classifier):
    answer = post(server, "/v1/classify", model="clubs", input=["Boris Mann reads.", "Hello."])
    found = answer.json()["data"]
    assert sum(found[0]["scores"].values()) == pytest.approx(1)
    adapted = load(classifier)
    assert set(found[0]["scores"]) == set(adapted.labels)
    assert post(server, "/v1/chat/completions", model="clubs", messages=QUESTION).status_code == 400
    assert post(server, "/v1/classify", model="base", input="x").status_code == 400


def test_adapters_are_loaded_only_from_below_the_roots(server, adapters, tmp_path):
    assert post(server, "/v1/adapters", name="new", path="lora-b").status_code == 200
    assert "new" in [one["id"] for one in get(f"{server.url}/v1/models").json()["data"]]
    assert delete(f"{server.url}/v1/adapters/new").status_code == 200
    assert delete(f"{server.url}/v1/adapters/new").status_code == 404
    assert delete(f"{server.url}/v1/adapters/base").status_code == 400
    (adapters.root / "link").symlink_to(tmp_path)
    for path in ("../..", str(tmp_path), "link", "lora-b/../../..", "a\x00b", "nothing"):
        assert post(server, "/v1/adapters", name="evil", path=path).status_code in (400, 404), path
    for name in ("", "../x", "a" * 200, "base"):
        assert post(server, "/v1/adapters", name=name, path="lora-b").status_code == 400


def test_health_readiness_metrics_and_schema(server):
    assert get(f"{server.url}/healthz").json() == {"status": "ok"}
    assert get(f"{server.url}/readyz").json()["ready"] is True
    text = get(f"{server.url}/metrics").text
    assert "luthier_new_tokens_total" in text
    assert all(len(line.split()) == 2 for line in text.splitlines() if not line.startswith("#"))
    assert "/v1/chat/completions" in get(f"{server.url}/openapi.json").json()["paths"]


def test_unknown_paths_and_methods_have_openai_s_shape(server):
    assert get(f"{server.url}/v1/nothing").json()["error"]["code"] == "not_found"
    assert get(f"{server.url}/v1/completions").status_code == 405


def test_a_client_that_goes_away_frees_its_slot(server):
    host, port = server.url.removeprefix("http://").split(":")
    for number in range(20):
        body = {"model": "base", "prompt": "Hello", "max_tokens": 400, "stream": bool(number % 2), "temperature": 1.5}
        raw = json.dumps(body).encode()
        with socket.create_connection((host, int(port))) as wire:
            fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
            wire.sendall(f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode() + raw)
            time.sleep(0.02 * (number % 4))
    assert settled(server)
    assert sorted(server.worker.engine.free) == list(range(8))


def test_too_many_at_once_get_429_and_the_client_s_retries_succeed(base, adapters):
    with running(base, {"lora-a": adapters.folders["lora-a"]}, inflight=4) as small:
        one = openai.OpenAI(base_url=f"{small.url}/v1", api_key="x")

        def ask(retries):
            try:
                one.with_options(max_retries=retries).completions.create(
                    model="lora-a", prompt="Hello", max_tokens=20, temperature=1
                )
            except openai.RateLimitError as error:
                return f"429, again after {error.response.headers['retry-after']}"
            return "200"

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            codes = list(pool.map(lambda _: ask(0), range(24)))
            assert set(codes) == {"200", "429, again after 1"}
            assert set(pool.map(lambda _: ask(60), range(12))) == {"200"}
        assert settled(small)


def test_a_key_is_asked_for_everywhere_but_healthz(base):
    with running(base, {}, keys=("secret",)) as closed:
        assert get(f"{closed.url}/healthz").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/readyz"):
            assert get(closed.url + path).status_code == 401, path
        assert get(f"{closed.url}/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert get(f"{closed.url}/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{closed.url}/v1", api_key="no").models.list()


def test_logprobs_are_those_of_the_model_plain_and_streamed(client, base):
    text = "Ada Moser lives in"
    options = {"model": "base", "prompt": text, "temperature": 0, "max_tokens": 5, "logprobs": 2}
    said = client.completions.create(**options).choices[0].logprobs
    ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
    best = base.model(ids).logits[0, -1].double().log_softmax(-1)
    assert said.token_logprobs[0] == pytest.approx(float(best.max()), abs=1e-4)
    assert said.tokens[0] == base.tokenizer.decode([int(best.argmax())])
    assert said.text_offset[:2] == [0, len(said.tokens[0])]
    chunks = client.completions.create(**options, stream=True)
    streamed = [one for chunk in chunks for one in chunk.choices[0].logprobs.token_logprobs]
    assert streamed == pytest.approx(said.token_logprobs, abs=1e-4)
    chat = {"model": "base", "messages": QUESTION, "max_tokens": 5, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**chat).choices[0].logprobs.content
    parts = [c.choices[0].logprobs for c in client.chat.completions.create(**chat, stream=True)]
    assert [one.token for part in parts if part for one in part.content] == [one.token for one in whole]


def test_the_client_s_stream_helper_and_unknown_fields(client):
    options = {"model": "lora-a", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**options).choices[0]
    stop = whole.message.content[4:7]
    with client.chat.completions.stream(**options, stop=stop) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert whole.message.content.startswith(final.choices[0].message.content)
    raw = client.chat.completions.with_raw_response.create(**options, extra_body={"mirostat": 2})
    assert raw.headers["x-luthier-ignored"] == "mirostat"


def test_a_prompt_is_byte_identical_to_that_of_training(server, adapters):
    from luthier.serve.answers import chat_job
    from luthier.serve.schema import Chat

    for name in SERVED:
        job = chat_job(server, Chat(model=name, messages=QUESTION))
        assert job.prompts == [load(adapters.folders[name]).prompt_ids(QUESTION[0]["content"])]


def test_an_adapter_that_changes_nothing_or_belongs_to_another_base_is_refused(server, adapters):
    """SERVING 7, row 15."""
    import shutil

    from safetensors.torch import load_file, save_file

    zero, other = adapters.root / "zero", adapters.root / "other"
    shutil.copytree(adapters.folders["lora-a"], zero)
    weights = load_file(zero / "adapter_model.safetensors")
    save_file({name: tensor * 0 for name, tensor in weights.items()}, zero / "adapter_model.safetensors")
    shutil.copytree(adapters.folders["lora-a"], other)
    card = json.loads((other / "luthier.json").read_text())
    card["base"]["fingerprint"]["weights"] = "0" * 64
    (other / "luthier.json").write_text(json.dumps(card))
    for path, word in (("zero", "nothing"), ("other", "weights")):
        answer = post(server, "/v1/adapters", name="new", path=path)
        assert answer.status_code == 400
        assert word in answer.json()["error"]["message"]
    assert post(server, "/v1/completions", model="new", prompt="a").status_code == 404
