"""A stack reads every setting it is given, gates what it says, and trains what it is told to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cells as battery
import models as tiny
import pytest
import torch

from luthier.core.errors import RecipeError
from luthier.methods import METHODS

PARTS = ({"name": "lora", "r": 2}, {"name": "prefix", "length": 3})


@pytest.mark.parametrize("name", ["length", "reduction", "r"])
def test_sizes_of_presets_are_not_ignored(name: str) -> None:
    """Beside `methods`, and r in a preset without a LoRA."""
    with pytest.raises(RecipeError, match=f"{name} is not read: the parts have their own"):
        METHODS.parse({"name": "stack", "methods": PARTS, name: 4})
    if name == "r":
        with pytest.raises(RecipeError, match="the preset mam has no r"):
            METHODS.parse({"name": "stack", "preset": "mam", "r": 4})
    members = METHODS.parse({"name": "stack", "preset": "unipelt", name: 3}).members
    assert [getattr(member.params, name) for member in members if hasattr(member.params, name)] == [3]


@pytest.mark.parametrize("part", ["ia3", "prompt", "p_tuning", "full", "bitfit", "last_layers", "peft"])
def test_gates_that_would_not_exist_are_refused(part: str) -> None:
    """By name, with the members that have one."""
    parts = ({"name": part}, {"name": "bottleneck"})
    with pytest.raises(RecipeError, match=f"{part} has no gate; gated: lora, bottleneck"):
        METHODS.parse({"name": "stack", "methods": parts, "gates": True})
    METHODS.parse({"name": "stack", "methods": parts})


@pytest.mark.parametrize("part", ["lora", "bottleneck", "prefix", "dynamic_prefix", "multitask_prefix"])
def test_every_member_that_is_called_gated_has_gates(part: str) -> None:
    """A closed gate takes its effect away, whatever the part."""
    own = {"name": part, **battery.SETTINGS[part]}
    partner = {"name": "lora", "r": 2} if part != "lora" else {"name": "bottleneck", "reduction": 4}
    spec = {"name": "stack", "gates": True, "methods": (own, partner)}
    base = tiny.base("llama")
    member = METHODS.parse(spec)
    made = member.attach(base, 0)
    assert sum(weight.numel() for weight in made.parameters().values()) == member.formula(tiny.base("llama"))
    battery.shake(made)
    with torch.no_grad():
        before = battery.outputs(base, made)
        for name, weight in made.parameters().items():
            if ("gate" in name) and name.endswith("bias") and (("lora" in name) == (part == "lora")):
                weight.fill_(-50.0)
        assert not torch.allclose(battery.outputs(base, made), before, atol=1e-3)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_frozen_part_acts_and_is_not_trained(kind: str, frozen: int, tmp_path: Path) -> None:
    """Its weights stay, those of the other part (and the head) move; it is kept in state and folder."""
    parts: list[dict[str, Any]] = [{"name": "lora", "r": 2}, {"name": "bottleneck", "reduction": 4}]
    parts[frozen]["train"] = False
    base = tiny.base(kind)
    member = METHODS.parse({"name": "stack", "methods": parts})
    made = member.attach(base, 0)
    for part in made.parts:
        battery.shake(part)
    mine = made.parameters()
    counted = sum(weight.numel() for weight in mine.values())
    assert counted == member.formula(tiny.base(kind))
    assert set(made.lr_factors) == set(mine)
    heads = tuple(head + "." for head in base.head) or ("no head",)
    own = {name: weight for name, weight in made.parts[frozen].parameters().items() if not name.startswith(heads)}
    kept = {name: weight.detach().clone() for name, weight in own.items()}
    assert not any(weight.requires_grad for weight in own.values())
    battery.loss(base, made).backward()
    with torch.no_grad():
        for weight in mine.values():
            assert float(weight.grad.abs().sum()) > 0
            weight.sub_(0.01 * weight.grad)
        assert all(torch.equal(own[name], value) for name, value in kept.items())
        assert any("classifier" in name for name in mine) == (kind == "bert")
        wanted = battery.outputs(base, made)
        for weight in own.values():  # it acts: without it the outputs are others
            weight.mul_(0.5)
        assert not torch.allclose(battery.outputs(base, made), wanted, atol=1e-3)
    made.save(tmp_path)
    assert json.loads((tmp_path / "bundle.json").read_text())["frozen"] == [f"{frozen}-{parts[frozen]['name']}"]
    other = tiny.base(kind)
    again = METHODS.get("stack").reload(tmp_path, other, trainable=True)
    assert set(again.parameters()) == set(mine)
    with torch.no_grad():
        assert torch.equal(battery.outputs(other, again), battery.outputs(base, made))


def test_at_least_one_part_is_trained() -> None:
    """Else there is nothing to do; the list of patterns of `full` is no such word."""
    frozen = [{**part, "train": False} for part in PARTS]
    with pytest.raises(RecipeError, match="no part of the stack is trained"):
        METHODS.parse({"name": "stack", "methods": frozen})
    full = {"name": "full", "train": ["down_proj"]}
    assert METHODS.parse({"name": "stack", "methods": [full, PARTS[0]]}).trains == (True, True)
