"""LoRA's targets, patterns, starts and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import cells as battery
import models as tiny
import pytest
import torch
from pydantic import ValidationError

import luthier as lu
from luthier.core.errors import CannotMerge, ModelError, RecipeError
from luthier.core.events import Emitter
from luthier.methods import METHODS, targets
from luthier.methods.lora import Lora
from luthier.pipeline import learn, prepare
from luthier.tasks import TASKS


def test_auto_takes_every_linear_layer_of_the_blocks() -> None:
    """Not the head, not the embeddings."""
    names = targets.resolve(tiny.base("llama"), "auto")
    assert len(names) == 14
    assert not any("lm_head" in name for name in names)
    assert {name.rpartition(".")[2] for name in targets.resolve(tiny.base("gpt2"), "auto")} == {
        "c_attn",
        "c_proj",
        "c_fc",
    }


@pytest.mark.parametrize("wanted", ["q", "q_proj", "*.self_attn.q_proj", ["model.layers.0.self_attn.q_proj"]])
def test_roles_names_and_globs(wanted: str | list[str]) -> None:
    """Four ways to say the query projection."""
    names = targets.resolve(tiny.base("llama"), wanted)
    assert all(name.endswith("q_proj") for name in names)
    assert names


def test_target_that_matches_nothing_lists_the_candidates() -> None:
    """q_proj on GPT-2: the classic."""
    with pytest.raises(ModelError) as caught:
        METHODS.parse({"name": "lora", "targets": ["q_proj", "v_proj"]}).attach(tiny.base("gpt2"), 0)
    assert "c_attn" in str(caught.value)


def test_layers_outside_the_model() -> None:
    """Layer 7 of 2."""
    with pytest.raises(ModelError, match="layers 0 to 1"):
        METHODS.parse({"name": "lora", "layers": [7]}).attach(tiny.base("llama"), 0)


@pytest.mark.parametrize(
    "wrong", [{"r": 0}, {"r": -1}, {"dropout": 1.0}, {"alpha": 0}, {"rank_pattern": {"q": 0}}, {"rr": 4}]
)
def test_impossible_settings(wrong: dict[str, object]) -> None:
    """Refused by the schema."""
    with pytest.raises(ValidationError):
        Lora.Params(**wrong)  # type: ignore[arg-type]
    with pytest.raises(RecipeError):
        METHODS.parse({"name": "lora", **wrong})


def test_second_adapter_on_one_base_is_refused() -> None:
    """No silent double wrapping."""
    base = tiny.base("llama")
    METHODS.parse("lora").attach(base, 0)
    with pytest.raises(ModelError, match="already carries"):
        METHODS.parse("lora").attach(base, 0)


def test_lora_plus_gives_b_its_own_rate() -> None:
    """A hint by weight name; A has none."""
    attached = METHODS.parse({"name": "lora", "lora_plus": 16}).attach(tiny.base("llama"), 0)
    assert set(attached.lr_factors.values()) == {16.0}
    assert all("lora_B" in name for name in attached.lr_factors)
    assert set(attached.lr_factors) <= set(attached.parameters())


@pytest.mark.parametrize("pattern", [{"rank_pattern": {"q": 5}}, {"alpha_pattern": {"k_pro": 2.0}}])
def test_patterns_that_fit_nothing_list_the_candidates(pattern: dict[str, object]) -> None:
    """PEFT ignores them; so does one for a layer that is no target, and one that is no regular expression."""
    member = METHODS.parse({"name": "lora", "r": 2, **pattern})
    for asked in (lambda: member.formula(tiny.base("llama")), lambda: member.attach(tiny.base("llama"), 0)):
        with pytest.raises(ModelError, match="fits none of the 14 targets") as error:
            asked()
        assert "q_proj" in error.value.remedy
        assert error.value.where == f"method.{next(iter(pattern))}"
    for given in ({"targets": "q", "rank_pattern": {"down_proj": 3}}, {"rank_pattern": {"*q": 3}}):
        with pytest.raises(ModelError):
            METHODS.parse({"name": "lora", **given}).attach(tiny.base("llama"), 0)


def test_rank_pattern_counts() -> None:
    """Another rank for the down projection, counted by the formula."""
    base = tiny.base("llama")
    member = METHODS.parse({"name": "lora", "r": 2, "rank_pattern": {"down_proj": 5}})
    formula = member.formula(base)
    attached = member.attach(base, 0)
    assert sum(weight.numel() for weight in attached.parameters().values()) == formula
    assert attached.own["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape[0] == 5


def test_same_seed_same_start() -> None:
    """Whatever was drawn before."""
    first = METHODS.parse("lora").attach(tiny.base("llama"), 5).state()
    torch.rand(100)
    second = METHODS.parse("lora").attach(tiny.base("llama"), 5).state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_state_is_strict() -> None:
    """Missing, extra, misshapen and not finite tensors are named."""
    attached = METHODS.parse("lora").attach(tiny.base("llama"), 0)
    state = attached.state()
    name = next(iter(state))
    for broken in (
        {key: value for key, value in state.items() if key != name},
        {**state, "more": torch.zeros(1)},
        {**state, name: torch.zeros(3, 3)},
        {**state, name: torch.full_like(state[name], float("nan"))},
    ):
        with pytest.raises(ModelError):
            attached.load_state(broken)


def test_folder_that_peft_wrote_is_read(tmp_path: Path) -> None:
    """With a classification head, and equal logits."""
    from peft import LoraConfig, get_peft_model

    cell = battery.Cell("lora", "llama", True)
    base = cell.base()
    model = get_peft_model(base.model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    wanted = battery.peft_outputs(cell, tmp_path)
    other = cell.base()
    attached = Lora.reload(tmp_path, other)
    with torch.no_grad():
        assert torch.allclose(battery.outputs(other, attached), wanted, atol=1e-6)


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    """PEFT loads these with a warning and serves the base."""
    from safetensors.torch import load_file, save_file

    attached = METHODS.parse({"name": "lora", "r": 2}).attach(tiny.base("llama"), 0)
    attached.save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    for broken in (
        dict(list(whole.items())[::2]),
        {f"x.{name}": value for name, value in whole.items()},
        {name: value * float("nan") for name, value in whole.items()},
    ):
        save_file(broken, file)
        with pytest.raises(ModelError):
            Lora.reload(tmp_path, tiny.base("llama"))


def test_merge_only_once() -> None:
    """A second merge would add the update twice."""
    attached = METHODS.parse("lora").attach(tiny.base("llama"), 0)
    attached.merge()
    with pytest.raises(CannotMerge, match="already merged"):
        attached.merge()


def test_unknown_token_is_refused() -> None:
    """train_tokens with a word that the tokenizer does not know."""
    with pytest.raises(ModelError, match="nonsense"):
        METHODS.parse({"name": "lora", "train_tokens": ["nonsense"]}).attach(tiny.base("llama"), 0)


def test_eva_begins_with_what_each_layer_reads() -> None:
    """A's rows are orthonormal and hold the most of the layer's inputs that r directions can; B is zero."""
    base = tiny.base("llama")
    attached = METHODS.parse({"name": "lora", "r": 4, "init": "eva"}).attach(base, 0)
    given, read = battery.batch(False), []
    with torch.no_grad():
        wanted = battery.outputs(base, None)
        layer = base.model.get_submodule("model.layers.1.mlp.down_proj")
        handle = layer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].reshape(-1, 48)))
        attached.start_from_inputs(lambda: battery.outputs(base, attached, given, "flat"))
        handle.remove()
        assert torch.equal(battery.outputs(base, attached), wanted)
    a, inputs = layer.lora_A["default"].weight.detach(), torch.cat(read)
    assert torch.allclose(a @ a.T, torch.eye(4), atol=1e-5)
    best = torch.linalg.svdvals(inputs)[:4].square().sum()
    assert float((inputs @ a.T).square().sum() / best) == pytest.approx(1, abs=1e-4)


def test_eva_goes_through_a_recipe_and_a_stack(tmp_path: Path) -> None:
    """The first matrices of the run are not the random ones."""
    rows = [{"prompt": f"w{i} w{i + 1}", "response": f"w{i + 2}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    starts = {}
    for init in ("default", "eva"):
        recipe = lu.Recipe.parse(f"""
model: {{path: {tiny.folder("llama")}}}
data: {{train: {tmp_path / "rows.jsonl"}, max_length: 32, template: plain}}
method: {{name: stack, methods: [{{name: lora, r: 2, init: {init}}}, {{name: prefix, length: 3}}]}}
""")
        task = TASKS.parse(recipe.task)
        loaded, splits = prepare.read(recipe, task)
        base = prepare.load_model(recipe, task, (), "single")
        data = prepare.encode(recipe, loaded, splits, task, base, (), "single", None)
        starts[init] = learn.adapt(recipe, base, task, data, Emitter()).state()
    names = [name for name in starts["eva"] if "lora_A" in name]
    assert len(names) == 14
    assert not any(torch.equal(starts["eva"][name], starts["default"][name]) for name in names)
    made = starts["eva"][names[0]]
    assert torch.allclose(made @ made.T, torch.eye(2), atol=1e-5)
