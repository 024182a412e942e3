"""The slot engine says for every adapter, in any company, what `generate` says for it alone (SERVING 7, rows 1–5)."""

import dataclasses
import random

import pytest
import torch

from luthier.adapted import load
from luthier.core.errors import ModelError
from luthier.models import decode
from luthier.serve.engine import Engine
from luthier.serve.registry import Registry
from luthier.serve.request import Request, Sampling

PROMPTS = ("Where does Ada Moser live?", "Hi", "Tell me about Karl Ulrich and his pet, if you can.", "她住在哪里？")
NEW = 14
GAP = 1e-4


@pytest.fixture(scope="module")
def registry(base, adapters):
    found = Registry(base, "base", (adapters.root,))
    for name, folder in adapters.folders.items():
        found.load(name, folder)
    return found


@pytest.fixture(scope="module")
def expected(adapters):
    """name → prompt → (ids, smallest gap of the two best logits)."""
    known = {}
    for name, folder in adapters.folders.items():
        adapted = load(folder)
        tasks = adapted.attached.facts.get("tasks", [""]) if name == "library" else [""]
        for number, task in enumerate(tasks):
            known[f"{name}:{task}" if task else name] = {text: alone(adapted, text, number) for text in PROMPTS}
    plain = load(adapters.folders["lora-a"])
    with plain.off():
        known["base"] = {text: alone(plain, text) for text in PROMPTS}
    return known


class OfTask:
    """An adapted model whose rows all belong to one task."""

    def __init__(self, adapted, number):
        self.base, self.adapted, self.number = adapted.base, adapted, number

    def virtual(self, batch):
        tasks = torch.full((len(batch.row_ids),), self.number)
        return self.adapted.virtual(dataclasses.replace(batch, tasks=tasks))


def alone(adapted, text, task=0):
    ids = adapted.prompt_ids(text)
    stops = adapted.base.stop_ids
    return decode.generate(OfTask(adapted, task), [ids], max_new_tokens=NEW, stop_ids=stops)[0].ids


def ask(registry, name, text, deliver, **sampling):
    served = registry.get(name)
    template = served.adapted.template if served.adapted else registry.get("lora-a").adapted.template
    from luthier.core.types import Turn

    ids = list(template.prompt_ids((Turn("user", text),), served.base.tokenizer))
    options = {"temperature": 0.0, "max_new_tokens": NEW, **sampling}
    return Request(served, ids, Sampling(**options), deliver, frozenset(served.base.stop_ids))


def drain(engine, most=5000):
    for _ in range(most):
        if engine.idle:
            return
        engine.step()
    raise AssertionError("the engine never came to rest")


EVERYDAY = [(1, 24), (5, 7), (16, 256)]
OTHERS = [(slots, budget) for slots in (1, 5, 16) for budget in (7, 24, 256) if (slots, budget) not in EVERYDAY]


@pytest.mark.parametrize(("slots", "budget"), EVERYDAY + [pytest.param(*one, marks=pytest.mark.soak) for one in OTHERS])
def test_every_kind_in_company_is_what_it_is_alone(registry, expected, base, slots, budget):
    engine = Engine(base, slots=slots, budget=budget)
    jobs = [(name, text) for text in PROMPTS for name in expected]
    random.Random(slots).shuffle(jobs)
    requests = {job: ask(registry, *job, lambda token: None) for job in jobs}
    for request in requests.values():
        engine.submit(request)
    drain(engine)
    wrong = [job for job, request in requests.items() if request.made != expected[job[0]][job[1]]]
    assert wrong == []
    assert sorted(engine.free) == list(range(slots))
    assert len({tuple(expected[name][PROMPTS[0]]) for name in expected}) > len(expected) // 2


def test_the_base_is_untouched(registry, base, adapters):
    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    fresh = load_base(ModelSettings(path="builtin"))
    for (name, one), (_, other) in zip(base.model.named_parameters(), fresh.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_seeded_sampling_does_not_depend_on_company(registry, base):
    def answer(company, budget):
        engine = Engine(base, slots=8, budget=budget)
        asked = ask(registry, "lora-b", PROMPTS[2], lambda t: None, temperature=0.9, top_p=0.9, top_k=40, seed=5)
        for index in range(company):
            engine.submit(ask(registry, "prefix-a", PROMPTS[index % 4], lambda t: None, temperature=1.0, seed=index))
        engine.submit(asked)
        drain(engine)
        return asked.made

    first = answer(0, 256)
    assert first == answer(6, 256) == answer(6, 7)


@pytest.mark.parametrize(
    ("seed", "count"), [(3, 100), *(pytest.param(seed, 300, marks=pytest.mark.soak) for seed in range(5))]
)
def test_joining_leaving_cancelling_and_swapping(registry, expected, base, adapters, seed, count):
    """Requests at random times; cancelled ones are right as far as they came."""
    source = random.Random(seed)
    engine = Engine(base, slots=6, budget=24)
    names = ["base", "lora-a", "lora-b", "prefix-a", "prompt", "bottleneck"]
    asked = []
    for index in range(count):
        name, text = source.choice(names), source.choice(PROMPTS)
        request = ask(registry, name, text, lambda token: None)
        asked.append((name, text, request))
        engine.submit(request)
        for _ in range(source.randrange(4)):
            engine.step()
        if source.random() < 0.12:
            source.choice(asked)[2].cancelled = True
        if index % 40 == 30:
            registry.load("lora-a", adapters.folders["lora-a"])
    drain(engine)
    for name, text, request in asked:
        assert request.made == expected[name][text][: len(request.made)], (name, text)
        assert request.cancelled or request.finish in ("stop", "length")
    assert sorted(engine.free) == list(range(6))


def test_a_failing_forward_fails_its_own_requests_only(registry, expected, base):
    engine = Engine(base, slots=4)
    errors = []
    bad = ask(registry, "bottleneck", PROMPTS[0], lambda token: errors.append(token.error))
    good = ask(registry, "lora-a", PROMPTS[0], lambda token: None)
    tree = bad.served.base.anatomy.backbone
    handle = tree.register_forward_pre_hook(lambda *a: (_ for _ in ()).throw(RuntimeError("boom")))
    engine.submit(bad)
    engine.submit(good)
    drain(engine)
    handle.remove()
    assert "boom" in errors[-1]
    assert good.made == expected["lora-a"][PROMPTS[0]]
    assert sorted(engine.free) == list(range(4))


def test_weights_that_are_not_finite_fail_their_own_requests_only(registry, expected, base, adapters):
    engine = Engine(base, slots=4)
    registry.load("sick", adapters.folders["prefix-b"])
    held = registry.get("sick")
    with torch.no_grad():
        for weight in held.adapted.parameters_by_name().values():
            weight.fill_(float("nan"))
    errors = []
    engine.submit(ask(registry, "sick", PROMPTS[0], lambda token: errors.append(token.error)))
    good = ask(registry, "prefix-a", PROMPTS[0], lambda token: None)
    engine.submit(good)
    drain(engine)
    registry.unload("sick")
    assert "finite" in errors[-1]
    assert good.made == expected["prefix-a"][PROMPTS[0]]
    after = [ask(registry, "base", text, lambda token: None) for text in PROMPTS]
    for request in after:  # the sick request's slot too is used again, beside longer ones
        engine.submit(request)
    drain(engine)
    assert [request.made for request in after] == [expected["base"][text] for text in PROMPTS]


def test_a_prompt_that_was_seen_is_not_fed_again_for_the_same_adapter_only(registry, expected, base):
    """SERVING 7, row 5: keys belong to a version of an adapter, not to tokens."""
    text, names = PROMPTS[2], ["base", "lora-a", "lora-b", "prefix-a", "prompt", "bottleneck", "dynamic"]
    engine = Engine(base, slots=8)
    for name in names:
        request = ask(registry, name, text, lambda token: None)
        engine.submit(request)
        drain(engine)
        assert request.made == expected[name][text]
        assert request.reused == 0
    fed = engine.counters.prompt_tokens
    again = [ask(registry, name, text, lambda token: None) for name in names]
    for request in again:
        engine.submit(request)
    drain(engine)
    assert [request.made for request in again] == [expected[name][text] for name in names]
    assert [request.reused for request in again] == [len(request.prompt) - 1 for request in again]
    assert engine.counters.prompt_tokens - fed == len(names)


def test_memory_for_keys_bounds_what_one_request_may_take(base):
    shape = (len(base.anatomy.layers), 2, base.anatomy.num_kv_heads, base.anatomy.head_dim)
    position = 2 * shape[0] * shape[1] * shape[2] * shape[3] * 4
    engine = Engine(base, slots=2, kv_bytes=80 * position)
    assert engine.window == 80
    engine.pool.reserve(80)
    assert engine.pool.bytes_per_slot() * 2 == 80 * position
    with pytest.raises(ModelError, match="81 positions"):
        engine.pool.reserve(81)
