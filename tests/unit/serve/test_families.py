"""The engine over architectures (SERVING 7, row 3): each kind in company says what it says alone, or is refused."""

import sys
from pathlib import Path

import pytest
import torch

from luthier.adapted import attach, load_onto
from luthier.core.errors import ModelError
from luthier.data.templates import choose
from luthier.models import decode
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve.engine import Engine
from luthier.serve.registry import Registry
from luthier.serve.request import Request, Sampling
from luthier.serve.start import engine_for, prove_exact
from luthier.tasks import TASKS

sys.path.insert(0, str(Path(__file__).parents[2] / "battery"))
import models

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **models.SMALL}
MORE = {"intermediate_size": 48, "max_position_embeddings": models.WINDOW, **SIZES}


def config(kind):
    import transformers as t

    if kind == "mistral":
        return t.MistralConfig(num_key_value_heads=2, sliding_window=16, **MORE)
    if kind == "neox":
        return t.GPTNeoXConfig(hidden_dropout=0.0, attention_dropout=0.0, **MORE)
    if kind == "gemma2":
        return t.Gemma2Config(num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, **MORE)
    if kind == "dynamic":
        scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
        return t.LlamaConfig(num_key_value_heads=2, rope_parameters=scaled, **MORE)
    if kind == "phimoe":
        return t.PhimoeConfig(
            num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, sliding_window=48, **MORE
        )
    return models._config(kind)


@pytest.fixture
def saved(request, tmp_path):
    """A folder with a tiny random model of the family, its weights strong enough that answers differ."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(5)
    kind = AutoModelForSeq2SeqLM if request.param == "t5" else AutoModelForCausalLM
    model = kind.from_config(config(request.param))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.save_pretrained(tmp_path / "model")
    models.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


METHODS = {"lora": {"name": "lora", "r": 4, "targets": "all-linear"}, "prefix": {"name": "prefix", "length": 3},
           "prompt": {"name": "prompt", "length": 2}, "bottleneck": {"name": "bottleneck", "reduction": 4}}  # fmt: skip


def adapters_and_answers(saved, path, prompts, registry):
    """Every method saved and loaded under its name; name → what `generate` says for the prompts."""
    expected = {}
    for number, (name, method) in enumerate(METHODS.items()):
        own = load_base(ModelSettings(path=path))
        task = TASKS.parse("language_model")
        adapted = attach(own, method, task, choose("plain", own.tokenizer, "language_model"), seed=number)
        with torch.no_grad():
            for weight in adapted.parameters_by_name().values():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.2)
        adapted.save(saved / name)
        again = load_onto(saved / name, load_base(ModelSettings(path=path)))
        expected[name] = [answer(again, ids) for ids in prompts]
        registry.load(name, saved / name)
    with again.off():
        expected["base"] = [answer(again, ids) for ids in prompts]
    return expected


def answer(adapted, ids):
    return decode.generate(adapted, [ids], max_new_tokens=12, stop_ids=(2,))[0].ids


def asked_together(engine, registry, prompts, names):
    """(name, prompt, request) of all, run to their ends."""
    asked = []
    for at, ids in enumerate(prompts):
        for name in names:
            sampling = Sampling(temperature=0.0, max_new_tokens=12)
            request = Request(registry.get(name), list(ids), sampling, lambda token: None, frozenset((2,)))
            asked.append((name, at, request))
            engine.submit(request)
    for _ in range(2000):
        engine.step()
        if engine.idle:
            break
    return asked


PROMPTS = [[5, 9, 11, 30], list(range(3, 25)), [40, 41]]


@pytest.mark.parametrize("saved", ["llama", "qwen3", "mistral", "gpt2", "neox", "opt"], indirect=True)
def test_a_family_in_company_is_what_it_is_alone(saved):
    path = str(saved / "model")
    base = load_base(ModelSettings(path=path))
    prove_exact(Engine(base, slots=2), base)
    registry = Registry(base, "base")
    expected = adapters_and_answers(saved, path, PROMPTS, registry)
    asked = asked_together(Engine(base, slots=4, budget=16), registry, PROMPTS, expected)
    assert [(name, at) for name, at, request in asked if request.made != expected[name][at]] == []
    assert len({tuple(expected[name][1]) for name in expected}) >= 4


@pytest.mark.parametrize(
    ("saved", "why"),
    [("gemma2", "soft caps"), ("dynamic", "depend on the length"), ("t5", "only decoder models run in slots")],
    indirect=["saved"],
)
def test_what_the_slots_cannot_hold_is_answered_one_by_one(saved, why):
    path = str(saved / "model")
    base = load_base(ModelSettings(path=path))
    with pytest.raises(ModelError, match=rf"{why}|cannot run"):
        prove_exact(Engine(base, slots=2), base)
    build, way, reason = engine_for(base, 3)
    assert reason
    registry, engine = Registry(base, "base", (), way), build()
    expected = adapters_and_answers(saved, path, PROMPTS, registry)
    asked = asked_together(engine, registry, PROMPTS, expected)
    assert [(name, at) for name, at, request in asked if request.made != expected[name][at]] == []
    assert {request.finish for _, _, request in asked} <= {"stop", "length"}
    assert len({str(expected[name]) for name in expected}) >= 4
    assert sorted(engine.free) == [0, 1, 2]
    assert not engine._states


@pytest.mark.parametrize("saved", ["phimoe"], indirect=True)
def test_a_window_that_is_only_in_the_mask_is_answered_one_by_one(saved):
    """The probes of the start are shorter than the window: it is the call without a window that gives it away."""
    base = load_base(ModelSettings(path=str(saved / "model")))
    with pytest.raises(ModelError, match="cannot run"):
        prove_exact(Engine(base, slots=2), base)
    assert engine_for(base, 3)[2]


@pytest.mark.parametrize("saved", ["t5"], indirect=True)
def test_an_encoder_decoder_says_what_transformers_generate_says(saved):
    base = load_base(ModelSettings(path=str(saved / "model")))
    build, way, reason = engine_for(base, 2)
    assert reason == "encoder-decoder models cannot share a flat row; only decoder models run in slots"
    registry = Registry(base, "base", (), way)
    for _, at, request in asked_together(build(), registry, PROMPTS, ["base"]):
        given = {"input_ids": torch.tensor([PROMPTS[at]]), "max_new_tokens": 12, "do_sample": False}
        made = base.model.generate(**given, eos_token_id=2, decoder_start_token_id=0)[0].tolist()
        assert [0, *request.made] == made


def test_the_slot_engine_is_taken_where_it_is_exact():
    base = load_base(ModelSettings(path="builtin"))
    build, way, reason = engine_for(base, 3)
    assert (type(build()), way, reason) == (Engine, "luthier_slots", "")
