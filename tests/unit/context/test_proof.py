"""The extension acts beyond the old window, keeps what it promises inside, and travels with the adapter."""

import json

import pytest
import torch

from luthier.adapted import attach, load, load_onto
from luthier.context import CONTEXTS
from luthier.context.plan import same_plan
from luthier.context.proof import positions_of, prove
from luthier.core.errors import ModelError, RecipeError
from luthier.data.templates import TEMPLATES
from luthier.models.load import load_base, read_config
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS

ROPE = ("linear", "ntk", "dynamic", "by_parts", "yarn", "llama3", "abf")


def extended(folder, spec):
    config = read_config(folder)
    plan = CONTEXTS.parse(spec).plan(config) if spec else None
    return load_base(ModelSettings(path=str(folder)), context=plan), config


@pytest.mark.parametrize("name", ROPE)
def test_c4_every_rope_method_moves_logits_beyond_the_window(folders, name):
    base, config = extended(folders("llama"), {"name": name, "length": 256})
    found = prove(base, config)
    assert found["beyond"] > 1e-3
    assert (found["inside"] == 0.0) == (name == "dynamic"), "only dynamic promises the old window to the bit"
    assert base.anatomy.window == 256


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("how", ["tile", "random", "interpolate"])
def test_new_rows_of_learned_tables_are_read(folders, kind, how):
    base, config = extended(folders(kind), {"name": "learned", "length": 128, "how": how})
    assert prove(base, config)["beyond"] > 1e-3
    ids = torch.arange(3, 67)[None] % 96
    old = load_base(ModelSettings(path=str(folders(kind))))
    with torch.no_grad():
        new_logits, old_logits = base.model(input_ids=ids).logits, old.model(input_ids=ids).logits
        assert torch.equal(new_logits, old_logits) == (how != "interpolate")
        assert base.model(input_ids=torch.zeros(1, 128, dtype=torch.long)).logits.shape == (1, 128, 96)


def test_b11_an_extension_without_effect_stops(folders):
    """The classic fault: the config is edited after the model was built."""
    base, config = extended(folders("llama"), None)
    base.context = CONTEXTS.parse({"name": "yarn", "length": 256}).plan(config)
    base.model.config.rope_parameters = base.context["config"]["rope_parameters"]
    with pytest.raises(ModelError, match="changes nothing beyond position 64"):
        prove(base, config)


def test_a_broken_promise_stops(folders):
    base, config = extended(folders("llama"), {"name": "ntk", "length": 256})
    base.context["inside"] = "equal"
    with pytest.raises(ModelError, match="promised to leave the first 64"):
        prove(base, config)


def test_b13_dynamic_at_the_target_length_would_be_a_no_op(folders):
    base, config = extended(folders("llama"), {"name": "dynamic", "length": 256})
    raised = {**base.context, "config": {**base.context["config"], "max_position_embeddings": 256}}
    silent = load_base(ModelSettings(path=str(folders("llama"))), context=raised)
    with pytest.raises(ModelError, match="changes nothing"):
        prove(silent, config)


def adapter(folder, spec, where):
    base, _ = extended(folder, spec)
    task = TASKS.parse("language_model")
    made = attach(base, {"name": "lora", "r": 2}, task, TEMPLATES.parse("plain"), seed=0)
    made.save(where)
    return made


def test_the_plan_travels_with_the_adapter(folders, tmp_path):
    spec = {"name": "yarn", "length": 256}
    made = adapter(folders("llama"), spec, tmp_path / "a")
    card = json.loads((tmp_path / "a" / "luthier.json").read_text())
    assert (card["context"]["method"], card["context"]["from"], card["context"]["to"]) == ("yarn", 64, 256)
    again = load(tmp_path / "a")
    assert again.base.anatomy.window == 256
    assert positions_of(again.base.model) == positions_of(made.base.model) == card["positions"]


@pytest.mark.parametrize("other", [None, {"name": "linear", "length": 256}, {"name": "yarn", "length": 128}])
def test_another_plan_is_refused(folders, tmp_path, other):
    adapter(folders("llama"), {"name": "yarn", "length": 256}, tmp_path / "a")
    base, _ = extended(folders("llama"), other)
    with pytest.raises(ModelError, match="was trained with yarn 64 → 256"):
        load_onto(tmp_path / "a", base)


def test_an_adapter_without_its_plan_is_refused_on_an_extended_base(folders, tmp_path):
    adapter(folders("llama"), {"name": "yarn", "length": 256}, tmp_path / "a")
    (tmp_path / "a" / "luthier.json").unlink()
    base, _ = extended(folders("llama"), {"name": "yarn", "length": 256})
    with pytest.raises(ModelError, match="trained with no extension"):
        load_onto(tmp_path / "a", base)


def test_a_base_whose_rope_was_edited_is_refused(folders, tmp_path):
    import shutil

    adapter(folders("llama"), None, tmp_path / "a")
    shutil.copytree(folders("llama"), tmp_path / "edited")
    config = json.loads((tmp_path / "edited" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    (tmp_path / "edited" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="positions mean something else"):
        load(tmp_path / "a", base=str(tmp_path / "edited"))


def test_what_plans_are_the_same():
    one = CONTEXTS.parse({"name": "yarn", "length": 256})
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64,
              "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}  # fmt: skip
    assert same_plan(one.plan(config), one.plan(config))
    assert same_plan(None, {})
    assert not same_plan(one.plan(config), None)


def test_alibi_is_refused_with_the_reason(folders):
    with pytest.raises(RecipeError, match="bloom has alibi ones"):
        extended(folders("bloom"), {"name": "yarn", "length": 4096})
