"""Requests made from the server's own OpenAPI schema, right ones and wrong ones (FAULTS F4; SERVING 7, row 11)."""

import collections
import functools
import time

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from serving import get, made, running, settled

from luthier.models.load import load_base
from luthier.models.settings import ModelSettings

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/adapters")
OPERATIONS = [(path, mode) for path in PATHS for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
CAMPAIGN = 1250
"""Cases of each operation and mode: 10,000 in all, a piece at a time."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzzed").resolve()
    made(root, "lora", {"name": "lora", "r": 4})
    made(root, "clubs", {"name": "lora", "r": 4}, "classify", ("a", "b"))
    base = load_base(ModelSettings(path="builtin"))
    with running(base, {"lora": root / "lora", "clubs": root / "clubs"}, root) as found:
        yield found


def small(schema):
    """The served schema, with answers of a few tokens, so that thousands of cases take minutes."""
    parts = schema["components"]["schemas"]
    for name, most in (("Chat", 3), ("Completion", 3)):
        fields = parts[name]["properties"]
        for field in ("max_tokens", "max_completion_tokens"):
            if field in fields:
                fields[field] = {"type": "integer", "minimum": 1, "maximum": most}
        fields["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
        parts[name]["required"] = sorted({*parts[name].get("required", ()), "max_tokens"})
    return schema


def campaign(cases, examples, check):
    """`check` on that many cases."""

    @hypothesis.settings(
        max_examples=examples, database=None, derandomize=True, deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(case=cases)
    def one(case):
        check(case)

    one()


def ask(url, codes, slowest, path, mode, case):
    """One case: counted, timed, never a 5xx, errors in shape."""
    start = time.monotonic()
    answer = case.call(base_url=url)
    slowest[0] = max(slowest[0], time.monotonic() - start)
    codes[path, mode, answer.status_code] += 1
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("examples", "operations"),
    [
        pytest.param(25, OPERATIONS, id="25"),
        *(
            pytest.param(CAMPAIGN, [one], marks=pytest.mark.soak, id=f"{one[0][4:]}-{one[1].value}")
            for one in OPERATIONS
        ),
    ],
)
def test_fault_F4_requests_from_the_schema(server, figure, examples, operations, capsys):
    """Each operation × {positive, negative} × examples: never a 5xx, never slower than 5 s, errors in shape."""
    raw = get(f"{server.url}/openapi.json").json()
    assert raw["components"]["schemas"]["Chat"]["properties"]["model"]["enum"] == ["base", "lora", "clubs"]
    schema = schemathesis.openapi.from_dict(small(raw))
    codes, slowest = collections.Counter(), [0.0]
    for path, mode in operations:
        cases = schema[path]["POST"].as_strategy(generation_mode=mode)
        campaign(cases, examples, functools.partial(ask, server.url, codes, slowest, path, mode.value))
    total = sum(codes.values())
    with capsys.disabled():
        print(f"\nF4: {total} cases, slowest {slowest[0]:.2f} s")
        for (path, mode, code), count in sorted(codes.items()):
            print(f"    {path} {mode} {code}: {count}")
    for path, mode in operations:
        answered = path in ("/v1/completions", "/v1/chat/completions") and mode is GenerationMode.POSITIVE
        assert not answered or codes[path, mode.value, 200] > 0
    assert slowest[0] < (5 if examples > 1000 else 60)  # a loaded machine is slow, a request that hangs is slower
    assert get(f"{server.url}/readyz").status_code == 200
    assert server.worker.restarts == 0
    assert settled(server)
    figure(total, total)
