"""The model's own logits decide what luthier multiplies by: no architecture is taken at its name."""

import dataclasses

import pytest
import torch
import transformers

from luthier.core.errors import ModelError
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.models import anatomy, forward, load, logit_scale
from luthier.models.base import Base

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
CONFIGS = {
    "hyperclovax": lambda t: t.HyperCLOVAXConfig(logits_scaling=5.0, head_dim=8, **SMALL),
    "cohere2_moe": lambda t: t.Cohere2MoeConfig(
        logit_scale=0.2, num_experts=4, num_experts_per_tok=2, head_dim=8, **SMALL
    ),
    "falcon_h1": lambda t: t.FalconH1Config(
        lm_head_multiplier=0.2, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        mamba_chunk_size=8, **SMALL),
    "granite": lambda t: t.GraniteConfig(logits_scaling=8.0, **SMALL),
    "gemma2": lambda t: t.Gemma2Config(final_logit_softcapping=2.0, head_dim=8, **SMALL),
    "cohere": lambda t: t.CohereConfig(logit_scale=0.0625, **SMALL),
    "llama": lambda t: t.LlamaConfig(**SMALL),
    "t5": lambda t: t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                               decoder_start_token_id=0),
}  # fmt: skip
EXACT = {"hyperclovax": 5.0, "cohere2_moe": 0.2, "falcon_h1": 0.2, "granite": 0.125, "cohere": 0.0625, "llama": 1.0}


def base_of(kind):
    torch.manual_seed(0)
    config = CONFIGS[kind](transformers)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(0, 0.5)
    found = anatomy.of(model)
    return Base(model, None, found, found.kind, None, {}, (2,), 0)


def off(base):
    """Largest difference of forward.logits from the model's own, as a share of the largest logit."""
    ids = torch.randint(3, 64, (13,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = base.model(input_ids=ids[None]).logits[0]
        made = forward.logits(base, forward.hidden(base, from_rows([Row("a", ids.numpy(), ids.numpy())])))
    return float((made - own).abs().max() / own.abs().max())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("known", [True, False], ids=["config", "measured"])
def test_luthiers_logits_are_the_models_own(kind, known):
    base = base_of(kind)
    before = base.anatomy.logit_scale
    if not known:  # as for an architecture that nobody has heard of
        base.anatomy = dataclasses.replace(base.anatomy, logit_scale=1.0)
    base.anatomy = logit_scale.checked(base)
    assert base.anatomy.logit_scale == pytest.approx(EXACT.get(kind, before), rel=1e-9)
    if kind != "t5":
        assert off(base) < 1e-5


def test_a_number_that_no_config_knows_is_measured():
    base = base_of("llama")
    own = base.model.forward

    def forward_times(**options):
        out = own(**options)
        out.logits = out.logits * 0.3217
        return out

    base.model.forward = forward_times
    base.anatomy = logit_scale.checked(base)
    assert base.anatomy.logit_scale == pytest.approx(0.3217, rel=1e-5)


def test_logits_that_are_no_multiple_of_the_head_are_refused():
    base = base_of("llama")
    own = base.model.forward

    def forward_plus(**options):
        out = own(**options)
        out.logits = out.logits + torch.linspace(0, 3, out.logits.shape[-1])
        return out

    base.model.forward = forward_plus
    with pytest.raises(ModelError, match=r"LlamaForCausalLM makes its logits otherwise"):
        logit_scale.checked(base)


def test_loading_measures(tmp_path, monkeypatch):
    from luthier.models.settings import ModelSettings

    asked = []
    monkeypatch.setattr(load.logit_scale, "checked", lambda base: asked.append(base) or base.anatomy)
    load.load_base(ModelSettings(path="builtin"))
    load.load_base(ModelSettings(path="builtin"), task="classify", labels=("a", "b"))
    assert len(asked) == 1
