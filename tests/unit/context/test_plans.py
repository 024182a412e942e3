"""Window extensions as plans: C1, C2, B12 and B13 of the measured faults, without a model where possible."""

import numpy as np
import pytest

from luthier.context import CONTEXTS
from luthier.context.plan import inverse_frequencies, window_of
from luthier.core.errors import RecipeError

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
ROPE = {"linear": {}, "ntk": {}, "abf": {}, "dynamic": {}, "yarn": {}, "by_parts": {}, "llama3": {},
        "longrope": {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}}  # fmt: skip


def plan(name, length=256, config=LLAMA, **params):
    return CONTEXTS.parse({"name": name, "length": length, **ROPE.get(name, {}), **params}).plan(config)


def build(config_changes, **extra):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    base = {k: v for k, v in LLAMA.items() if k != "model_type"}
    return LlamaRotaryEmbedding(LlamaConfig(**{**base, **extra, **config_changes}))


@pytest.mark.parametrize("name", ROPE)
def test_every_rope_plan_builds_and_changes_the_frequencies(name):
    made = plan(name)
    assert made["config"]["rope_parameters"]["rope_theta"] > 0, "B10: the full dict, theta included"
    import torch

    old, new = build({}), build(made["config"])
    positions = torch.arange(256)[None]
    x = torch.zeros(1, 256, 32)
    changed = (old(x, positions)[0] - new(x, positions)[0]).abs().max()
    assert changed > 1e-3, "a method that changes nothing must not pass"
    assert made["from"] == 64
    assert made["factor"] == 4


def test_b12_yarn_keeps_the_original_length():
    assert plan("yarn")["config"]["rope_parameters"]["original_max_position_embeddings"] == 64


def test_b13_dynamic_keeps_the_old_maximum_and_is_bit_equal_inside():
    import torch

    made = plan("dynamic")
    assert made["config"]["max_position_embeddings"] == 64
    old, new = build({}), build(made["config"])
    short, x = torch.arange(64)[None], torch.zeros(1, 64, 32)
    assert torch.equal(old(x, short)[0], new(x, short)[0])


def test_c2_frequencies_use_the_head_dimension():
    frequencies = inverse_frequencies(window_of(LLAMA))
    assert len(frequencies) == 16
    assert np.isclose(frequencies[1], 10000 ** (-2 / 32))


def test_ntk_interpolates_the_lowest_and_keeps_the_highest():
    made = plan("ntk")
    window = window_of({**LLAMA, **made["config"]})
    old, new = inverse_frequencies(window_of(LLAMA)), inverse_frequencies(window)
    assert np.isclose(new[-1], old[-1] / 4)
    assert new[0] == old[0]


def test_yarn_temperature_is_the_papers():
    assert np.isclose(build(plan("yarn")["config"]).attention_scaling, 0.1 * np.log(4) + 1)
    assert build(plan("by_parts")["config"]).attention_scaling == 1.0


@pytest.mark.parametrize(
    ("name", "config", "length"),
    [("yarn", LLAMA, 64), ("yarn", LLAMA, 10), ("learned", LLAMA, 128),
     ("linear", {"model_type": "gpt2", "n_positions": 16}, 64),
     ("sinusoidal", LLAMA, 128), ("linear", {"model_type": "mystery"}, 64)],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(name, config, length):
    with pytest.raises(RecipeError):
        plan(name, length, config)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bert", "roberta"])
@pytest.mark.parametrize("how", ["tile", "random", "interpolate"])
def test_c1_learned_tables_grow_and_keep_what_they_promise(kind, how):
    import torch
    from transformers import AutoConfig, AutoModel

    from luthier.context.plan import LEARNED
    from luthier.models.window import RESERVED, position_table, resize_positions

    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    extra = {"gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2}, "opt": {"ffn_dim": 16, "word_embed_proj_dim": 16}}
    size = 18 if kind == "roberta" else 16
    config = AutoConfig.for_model(
        kind, **{**small, **extra.get(kind, {}), LEARNED[kind]: size, "intermediate_size": 16}
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    made = CONTEXTS.parse({"name": "learned", "length": 32, "how": how}).plan(config.to_dict())
    old = position_table(model)[2].weight.detach().clone()
    ids = torch.arange(5, 15)[None]
    before = model(input_ids=ids).last_hidden_state
    resize_positions(model, made)
    new, reserved = position_table(model)[2].weight, RESERVED.get(kind, 0)
    assert len(new) == 32 + reserved
    if how == "interpolate":
        assert torch.allclose(new[[reserved, -1]], old[[reserved, -1]], atol=1e-6)
        assert len({tuple(row.tolist()) for row in new[reserved:]}) == 32, "no two positions are identical"
    else:
        assert torch.equal(new[: len(old)], old)
        assert torch.equal(model(input_ids=ids).last_hidden_state, before)
    model(input_ids=torch.arange(3, 33)[None].clamp(max=49))
    assert getattr(model.config, LEARNED[kind]) == made["config"][LEARNED[kind]]


@pytest.mark.parametrize(
    ("spec", "said"),
    [({"name": "abf", "base": 10_000}, "not above the model's own 10000"),
     ({"name": "llama3", "low_freq_factor": 4.0}, "low_freq_factor must be below"),
     ({"name": "yarn", "beta_fast": 1.0}, "beta_fast must be above beta_slow"),
     ({"name": "by_parts", "beta_fast": 2.0, "beta_slow": 3.0}, "beta_fast must be above beta_slow"),
     ({"name": "longrope", "short_factor": [0.0], "long_factor": [1.0]}, "greater than 0"),
     ({"name": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "short_factor needs 16 numbers")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(spec, said):
    with pytest.raises(RecipeError, match=said):
        CONTEXTS.parse({"length": 256, **spec}).plan(LLAMA)


def test_ntk_with_one_frequency_is_refused_not_divided_by_zero():
    with pytest.raises(RecipeError, match="more than one frequency"):
        plan("ntk", config={**LLAMA, "head_dim": 2})


def test_dynamic_says_what_a_batch_does_to_short_rows():
    assert "longest row of a batch" in plan("dynamic")["warnings"][0]


def test_sinusoidal_positions_run_on_beyond_their_window():
    import torch
    from transformers import XGLMConfig, XGLMForCausalLM

    small = {"vocab_size": 40, "d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16, "dropout": 0.0}
    config = {"model_type": "xglm", "max_position_embeddings": 32}
    made = CONTEXTS.parse({"name": "sinusoidal", "length": 64}).plan(config)
    torch.manual_seed(0)
    short = XGLMForCausalLM(XGLMConfig(max_position_embeddings=32, **small)).eval()
    longer = XGLMForCausalLM(XGLMConfig(**made["config"], **small)).eval()
    longer.load_state_dict(short.state_dict())
    ids = torch.arange(64)[None] % 35 + 4
    with torch.no_grad():
        assert torch.equal(longer(input_ids=ids[:, :32]).logits, short(input_ids=ids[:, :32]).logits)
        assert torch.isfinite(longer(input_ids=ids).logits).all()
    with pytest.raises(RecipeError, match="not longer than 32"):
        CONTEXTS.parse({"name": "sinusoidal", "length": 32}).plan(config)
