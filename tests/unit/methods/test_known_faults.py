"""Faults of other libraries (numbers B1 … B24 of the project's list): each is avoided or refused up front."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import cells as battery
import models as tiny
import numpy as np
import properties
import pytest
import torch

import luthier
from luthier.core.errors import CannotMerge, ModelError, RecipeError
from luthier.core.types import IGNORE
from luthier.methods import METHODS
from luthier.methods.modules.virtual_tokens import VirtualTokens
from luthier.models import decode
from luthier.recipe import Recipe
from luthier.tasks.token_loss import token_loss


@pytest.mark.parametrize("method", ["prefix", "dynamic_prefix", "{name: stack, preset: mam}"])
def test_b1_b2_b24_checkpointing_never_drops_a_prefix(method: str) -> None:
    """Refused by the recipe, before a model is loaded; flat rows keep it."""
    text = f"data: {{train: x.jsonl}}\nmethod: {method}\ntrain: {{activation_checkpointing: true, engine: plain}}\n"
    with pytest.raises(RecipeError, match=r"recipe has faults|prefix is lost"):
        Recipe.parse(text)
    Recipe.parse(text, "train.engine=auto")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "opt"])
@pytest.mark.parametrize("method", ["prompt", "p_tuning", "prefix"])
def test_b3_b20_left_padded_generation_is_the_single_one(kind: str, method: str) -> None:
    """Prompts of different lengths in one batch answer as alone."""
    base = tiny.base(kind)
    attached = METHODS.parse({"name": method, "length": 3}).attach(base, 0)
    battery.shake(attached)

    class Answers:
        def __init__(self) -> None:
            self.base = base
            self.virtual = attached.virtual

    prompts = [[5, 6, 7, 8, 9, 10, 11], [20], [30, 31, 32]]
    together = decode.generate(Answers(), prompts, max_new_tokens=6, stop_ids=[])
    alone = [decode.generate(Answers(), [prompt], max_new_tokens=6, stop_ids=[])[0] for prompt in prompts]
    assert [one.ids for one in together] == [one.ids for one in alone]


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_b7_b8_with_a_cache_and_without_one(kind: str, method: str) -> None:
    """PEFT fails on static caches and says other tokens without one; here both ways give the same tokens."""
    assert properties.generation(battery.Cell(method, kind, False)) == "yes"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_b4_decoder_heads_pool_the_last_real_token(kind: str) -> None:
    """With a prompt before and padding behind."""
    cell = battery.Cell("prompt", kind, True)
    base = cell.base()
    attached = METHODS.parse(cell.spec).attach(base, 0)
    with torch.no_grad():
        together = battery.outputs(base, attached)
        alone = [battery.outputs(base, attached, battery.batch(True, [row])) for row in battery.rows()]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_b9_resume_keeps_the_network_behind_a_prompt() -> None:
    """The encoder is in the state, not only the embedding that it makes."""
    for spec in ({"name": "p_tuning", "length": 3}, {"name": "prefix", "length": 3, "mlp": 8}):
        attached = METHODS.parse(spec).attach(tiny.base("llama"), 0)
        assert any(name.startswith("net.") for name in attached.state())
        assert "offset" in attached.state()


def test_a_prompt_that_eats_the_window_is_refused() -> None:
    """Virtual tokens take positions."""
    with pytest.raises(ModelError, match="window"):
        METHODS.parse({"name": "prefix", "length": tiny.WINDOW}).attach(tiny.base("gpt2"), 0)


def test_b17_rows_without_a_target_have_no_loss_and_no_gradient() -> None:
    """transformers' mean over nothing is nan; a sum over nothing is 0."""
    row = battery.rows()[0]
    base = tiny.base("llama")
    attached = METHODS.parse({"name": "lora", "r": 2}).attach(base, 0)
    masked = battery.batch(True, [dataclasses.replace(row, labels=np.full_like(row.labels, IGNORE))])
    found = token_loss(base, masked, None, "padded")
    found.total.backward()
    assert float(found.total.detach()) == 0
    assert all(float(weight.grad.abs().sum()) == 0 for weight in attached.parameters().values())
    ids = torch.tensor(row.input_ids[None]).long()
    assert math.isnan(float(base.model(input_ids=ids, labels=torch.full_like(ids, IGNORE)).loss))


def test_b18_the_same_shape_of_another_base_is_refused(tmp_path: Path) -> None:
    """PEFT puts an adapter on any base that it fits; here the fingerprint of the weights decides."""
    from luthier.adapted import attach, load_onto
    from luthier.data.templates import TEMPLATES
    from luthier.tasks import TASKS

    base = tiny.base("llama")
    attach(base, "prefix", TASKS.parse("instruct"), TEMPLATES.parse("plain"), seed=0).save(tmp_path / "adapter")
    other = tiny.base("llama")
    other.fingerprint = {**other.fingerprint, "weights": "another"}
    with pytest.raises(ModelError, match="not those that this adapter was trained on"):
        load_onto(tmp_path / "adapter", other)
    assert luthier.load(tmp_path / "adapter", base=str(tiny.folder("llama"))).tasks == ()


def test_b18_a_base_that_an_adapter_was_merged_into_is_another_base(tmp_path: Path) -> None:
    """Merged, saved, and given to an adapter of the unmerged base: the same shapes, and refused."""
    from luthier.adapted import attach, load
    from luthier.data.templates import TEMPLATES
    from luthier.tasks import TASKS

    plain, merged = str(tiny.folder("llama")), tmp_path / "merged"
    base = tiny.base("llama")
    first = METHODS.parse({"name": "lora", "r": 2}).attach(base, 0)
    battery.shake(first)
    first.merge()
    base.model.save_pretrained(merged)
    tiny.tokenizer().save_pretrained(merged)
    second = attach(tiny.base("llama"), "prefix", TASKS.parse("instruct"), TEMPLATES.parse("plain"), seed=0)
    second.save(tmp_path / "adapter")
    assert load(tmp_path / "adapter", base=plain).base.path.name == tiny.folder("llama").name
    with pytest.raises(ModelError, match="not those that this adapter was trained on"):
        load(tmp_path / "adapter", base=str(merged))


def test_b18_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Every tensor is held against the model (same shapes: the fingerprint in luthier.json decides)."""
    METHODS.parse({"name": "prefix", "length": 3}).attach(tiny.base("gpt2"), 0).save(tmp_path)
    with pytest.raises(ModelError, match="trained on"):
        METHODS.get("prefix").reload(tmp_path, tiny.base("llama"))


def test_b19_a_stack_trains_all_its_parts() -> None:
    """PEFT freezes the LoRA under a prefix."""
    spec = {"name": "stack", "methods": [{"name": "lora", "r": 2}, {"name": "prefix", "length": 3}]}
    base = tiny.base("llama")
    attached = METHODS.parse(spec).attach(base, 0)
    battery.shake(attached)
    battery.loss(base, attached).backward()
    assert all(weight.grad is not None for weight in attached.parameters().values())
    assert {name.split(".")[0] for name in attached.parameters()} == {"0", "1"}


def test_b21_prefixes_that_are_only_read_are_not_trained(tmp_path: Path) -> None:
    """After PEFT's set_adapter every prefix stays trainable; what is loaded here is frozen unless asked."""
    spec = {"name": "multitask_prefix", "length": 3, "tasks": ("a", "b")}
    METHODS.parse(spec).attach(tiny.base("llama"), 0).save(tmp_path)
    for trainable in (False, True):
        again = METHODS.get("multitask_prefix").reload(tmp_path, tiny.base("llama"), trainable)
        assert {weight.requires_grad for weight in again.parameters().values()} == {trainable}


def test_b23_no_run_goes_through_the_trainer() -> None:
    """Names that transformers renames cannot break a recipe: its Trainer is only a peer in the benchmark."""
    source = Path(luthier.__file__).parent
    files = (path for path in source.rglob("*.py") if "TrainingArguments" in path.read_text("utf-8"))
    assert {path.relative_to(source).parts[0] for path in files} == {"bench"}


def test_b22_a_stack_is_saved_and_read(tmp_path: Path) -> None:
    """One folder with bundle.json; each part in its own format, which PEFT reads."""
    from peft import PeftModel

    spec = {"name": "stack", "methods": [{"name": "lora", "r": 2}, {"name": "prefix", "length": 3}]}
    METHODS.parse(spec).attach(tiny.base("llama"), 0).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-lora", "1-prefix", "bundle.json"]
    for part in ("0-lora", "1-prefix"):
        PeftModel.from_pretrained(tiny.base("llama").model, str(tmp_path / part))


def test_hostile_bundles_are_refused(tmp_path: Path) -> None:
    """Names of parts cannot leave the folder."""
    METHODS.parse({"name": "stack", "preset": "mam", "length": 3}).attach(tiny.base("llama"), 0).save(tmp_path)
    (tmp_path / "bundle.json").write_text('{"format": 1, "parts": ["../0-bottleneck"], "gates": false}')
    with pytest.raises(ModelError, match="not understood"):
        METHODS.get("stack").reload(tmp_path, tiny.base("llama"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "stack"},
        {"name": "stack", "preset": "mam", "methods": [{"name": "lora"}, {"name": "prefix"}]},
        {"name": "stack", "methods": [{"name": "lora"}]},
        {"name": "stack", "methods": [{"name": "lora"}, {"name": "ia3"}]},
        {"name": "stack", "methods": [{"name": "prompt"}, {"name": "prefix"}]},
        {"name": "stack", "methods": [{"name": "stack"}, {"name": "lora"}]},
        {"name": "stack", "methods": [{"name": "lora"}, {"name": "prefx"}]},
        {"name": "peft", "type": "lora"},
        {"name": "peft", "type": "nothing"},
        {"name": "peft", "type": "loha", "settings": {"rr": 4}},
        {"name": "prefix", "tied": True, "mlp": 4},
        {"name": "prefix", "length": 0},
        {"name": "multitask_prefix", "tasks": ["a", "a"]},
    ],
)
def test_combinations_that_cannot_work(wrong: dict[str, object]) -> None:
    """Refused in words, none of them a stack trace of another library."""
    with pytest.raises(RecipeError):
        METHODS.parse(wrong).attach(tiny.base("llama"), 0)


def test_virtual_tokens_have_nothing_to_merge() -> None:
    """CannotMerge tells why."""
    attached = METHODS.parse("prefix").attach(tiny.base("llama"), 0)
    assert isinstance(attached, VirtualTokens)
    with pytest.raises(CannotMerge, match="depends on the input"):
        attached.merge()


def test_peft_prompt_on_an_encoder_is_not_read_as_ours(tmp_path: Path) -> None:
    """PEFT pools the first virtual token, luthier the row's own: other logits, so it is refused."""
    from peft import PromptTuningConfig, get_peft_model

    base = tiny.base("bert")
    get_peft_model(base.model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="pools the first virtual token"):
        METHODS.get("prompt").reload(tmp_path, tiny.base("bert"))


@pytest.mark.parametrize("name", METHODS.names())
def test_members_explain_their_rates(name: str) -> None:
    """A default rate, a schedule and a reason; modules import without torch (the house test proves that)."""
    member = METHODS.get(name)
    assert 0 < member.default_lr < 1
    assert member.default_schedule["name"] in ("cosine", "linear", "constant")
    assert len(member.lr_reason) > 20
    assert member.Params.__doc__
    for field in member.Params.model_fields.values():
        assert field.description or field.default is not None or field.default_factory or not field.is_required()


def test_the_page_of_traps_names_tests_that_exist() -> None:
    """docs/methods/peft_traps.md: B1 to B24, each with a test."""
    root = Path(__file__).parents[3]
    page = (root / "docs" / "methods" / "peft_traps.md").read_text("utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| B")]
    numbers = {number for row in rows for number in re.findall(r"B(\d+)", row[1])}
    assert numbers == {str(number) for number in range(1, 25)}
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-2])
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (root / file).read_text("utf-8"), (file, test)
