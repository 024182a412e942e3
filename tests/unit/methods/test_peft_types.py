"""Every type of PEFT's that `name: peft` offers: trained, saved, loaded; what cannot be is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cells as battery
import models as tiny
import numpy as np
import pytest
import torch
from peft import OFTConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from luthier.adapted import attach, load
from luthier.core.errors import LuthierError, ModelError, RecipeError
from luthier.core.types import Row
from luthier.data.templates import TEMPLATES
from luthier.engine.batch import from_rows
from luthier.methods import METHODS
from luthier.methods.modules.tuned import Tuned
from luthier.methods.peft import NOT_ALONE, OWN_MEMBERS
from luthier.tasks import TASKS

SETTINGS: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 50},
    "miss": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "waveft": {"n_frequency": 50},
}
"""What a model of width 32 needs; all others run with their defaults."""
BEFORE_THE_TEXT = ("adaption_prompt", "cartridge", "cpt", "multitask_prompt_tuning")
ALL = sorted(str(kind.value).lower() for kind in PEFT_TYPE_TO_TUNER_MAPPING)
TYPES = [name for name in ALL if name.upper() not in {*OWN_MEMBERS, *NOT_ALONE} and name not in BEFORE_THE_TEXT]
IDS = np.array([5, 6, 7, 8, 9, 10], np.int32)


def adapted(kind: str, name: str) -> Any:
    """On a tiny model."""
    spec = {"name": "peft", "type": name, "settings": SETTINGS.get(name, {})}
    return attach(tiny.base(kind), spec, TASKS.parse("instruct"), TEMPLATES.parse("plain"), seed=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TYPES)
def test_it_learns_and_is_the_same_after_loading(name: str, tmp_path: Path) -> None:
    """The loss falls in eight steps; the folder, on a fresh base, gives the same losses."""
    made, batch = adapted("llama", name), from_rows([Row("a", IDS, IDS)])
    weights = made.parameters_by_name()
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = made.train().loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    wanted = made.eval().token_nll(batch)
    made.save(tmp_path / "adapter")
    again = load(tmp_path / "adapter", base=str(tiny.folder("llama")))
    assert torch.allclose(again.token_nll(batch), wanted, atol=1e-5)
    with again.off():
        assert not torch.allclose(again.token_nll(batch), wanted, atol=1e-3)


@pytest.mark.parametrize("name", [kind.lower() for kind in NOT_ALONE])
def test_what_needs_more_than_layers_is_refused(name: str) -> None:
    """With the reason and what to take instead."""
    with pytest.raises(RecipeError, match="is not trained here") as error:
        adapted("llama", name)
    assert error.value.remedy


@pytest.mark.parametrize("name", BEFORE_THE_TEXT)
def test_what_stands_before_the_text_is_refused(name: str) -> None:
    """PEFT's own forward would be needed."""
    with pytest.raises(LuthierError):
        adapted("llama", name)


def test_a_tuner_that_finds_no_layer_is_refused() -> None:
    """GPT-2's layers are none of OSF's: nothing would be trained."""
    with pytest.raises(ModelError, match="nothing to train"):
        adapted("gpt2", "osf")


@pytest.mark.parametrize("name", ["bias", "modules_to_save"])
def test_weights_of_the_base_are_not_trained_on_the_side(name: str) -> None:
    """They had no optimizer (bias) or were lost in the folder (modules_to_save); told before a model is loaded."""
    wanted = {"bias": "all", "modules_to_save": ["lm_head"]}[name]
    spec = {"name": "peft", "type": "oft", "settings": {name: wanted}}
    with pytest.raises(RecipeError, match="would train weights of the base") as error:
        METHODS.parse(spec)
    assert "name: stack" in str(error.value)
    METHODS.parse({**spec, "settings": {name: {"bias": "none", "modules_to_save": None}[name]}})


def test_gradients_that_nothing_declares_are_refused() -> None:
    """Whatever setting of PEFT's asks for them."""
    with pytest.raises(ModelError, match="asks for gradients of the base's"):
        Tuned(tiny.base("opt"), OFTConfig(target_modules=["q_proj"], oft_block_size=4, bias="all"))


def test_what_the_remedies_say_trains_and_comes_back(tmp_path: Path) -> None:
    """Biases, and a head, as another part of a stack."""
    for first in ({"name": "bitfit"}, {"name": "full", "train": ["embed_tokens"]}):
        spec = {"name": "stack", "methods": [first, {"name": "peft", "settings": {"r": 2}}]}
        base = tiny.base("opt")
        made = METHODS.parse(spec).attach(base, 0)
        battery.shake(made)
        battery.loss(base, made).backward()
        assert all(float(weight.grad.abs().sum()) > 0 for weight in made.parameters().values())
        made.save(tmp_path / first["name"])
        other = tiny.base("opt")
        again = METHODS.get("stack").reload(tmp_path / first["name"], other)
        with torch.no_grad():
            assert torch.equal(battery.outputs(other, again), battery.outputs(base, made))
