"""Parts of every tiny architecture, and of more that only a config is needed for."""

from __future__ import annotations

import models as tiny
import peft
import pytest
import torch
import transformers

from luthier.models import anatomy

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
MORE = {
    "mistral": lambda: transformers.MistralConfig(
        intermediate_size=48, num_key_value_heads=2, sliding_window=16, **WIDE
    ),
    "gemma2": lambda: transformers.Gemma2Config(intermediate_size=48, num_key_value_heads=2, head_dim=8, **WIDE),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(intermediate_size=48, **WIDE),
    "phi3": lambda: transformers.Phi3Config(intermediate_size=48, num_key_value_heads=2, pad_token_id=0, **WIDE),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64),
    "falcon": lambda: transformers.FalconConfig(**WIDE),
    "granite": lambda: transformers.GraniteConfig(intermediate_size=48, logits_scaling=4.0, **WIDE),
}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_parts_of_the_tiny_models(kind: str) -> None:
    """Layers, sites, roles and sizes."""
    found = tiny.base(kind).anatomy
    layers = 4 if kind == "t5" else 2
    assert len(found.layers) == len(found.attentions) == len(found.mlps) == layers
    assert len(found.sites) == 2 * layers
    assert (found.hidden_size, found.num_heads, found.head_dim) == (32, 4, 8)
    assert found.num_kv_heads == (2 if kind in ("llama", "qwen3") else 4)
    assert found.position_kind == {"llama": "rope", "qwen3": "rope", "t5": "t5"}.get(kind, "learned")
    assert found.kind == {"bert": "encoder", "t5": "encoder_decoder"}.get(kind, "decoder")


@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "t5"])
def test_sites_carry_hidden_states(kind: str) -> None:
    """What goes into `first` and comes out of `last` is [B, T, hidden]."""
    base = tiny.base(kind)
    shapes: list[tuple[int, ...]] = []
    for site in base.anatomy.sites:
        base.model.get_submodule(site.first).register_forward_pre_hook(lambda m, a: shapes.append(a[0].shape))
        base.model.get_submodule(site.last).register_forward_hook(lambda m, a, out: shapes.append(out.shape))
    base.model(torch.arange(4, 10)[None])
    assert len(shapes) == 8
    assert {shape[-1] for shape in shapes} == {32}


@pytest.mark.parametrize("kind", sorted(MORE))
def test_other_architectures(kind: str) -> None:
    """Found by structure: nothing here knows their names."""
    model = transformers.AutoModelForCausalLM.from_config(MORE[kind]())
    found = anatomy.of(model)
    assert len(found.layers) == 2
    assert found.linear_names["down"]
    assert found.linear_names["o"]
    assert all(site.first and site.last for site in found.sites)
    assert found.final_norm is not None
    assert found.head is not None
    linear = {name for names in found.linear_names.values() for name in names}
    inside = {name for name, m in model.named_modules() if type(m).__name__.endswith("Linear") and ".layers." in name}
    assert inside <= linear
    assert found.num_kv_heads == {"falcon": 1, "gpt_neox": 4, "bloom": 4, "granite": 4}.get(kind, 2)


@pytest.mark.parametrize("kind", ["phimoe", "llama4", "mixtral"])
def test_routers_of_experts_are_no_layers_to_adapt(kind: str) -> None:
    """A LoRA on every linear layer trains: a router is a linear layer by class, but gives a tuple."""
    more = {"intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0, **WIDE}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = {
        "phimoe": lambda: transformers.PhimoeConfig(**experts, **more),
        "llama4": lambda: transformers.Llama4TextConfig(head_dim=8, intermediate_size_mlp=48, **experts, **more),
        "mixtral": lambda: transformers.MixtralConfig(**experts, **more),
    }[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    names = [name for found in anatomy.of(model).linear_names.values() for name in found]
    assert any(name.endswith("q_proj") for name in names)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=names))
    adapted(input_ids=torch.tensor([[3, 4, 5, 6]])).logits.sum().backward()


def test_logit_rules() -> None:
    """Granite divides, Gemma 2 caps."""
    granite = anatomy.of(transformers.AutoModelForCausalLM.from_config(MORE["granite"]()))
    gemma = anatomy.of(transformers.AutoModelForCausalLM.from_config(MORE["gemma2"]()))
    assert granite.logit_scale == 0.25
    assert gemma.logit_softcap == 30.0
    assert anatomy.of(transformers.AutoModelForCausalLM.from_config(MORE["mistral"]())).sliding_window == 16
