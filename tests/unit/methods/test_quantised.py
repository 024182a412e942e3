"""Methods on 4-bit and 8-bit bases (extra `quant`): what is promised works, the rest is refused before training."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import cells as battery
import models as tiny
import pytest
import torch

import luthier as lu
from luthier.core.errors import CannotMerge, GateFailed, ModelError
from luthier.methods import METHODS
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.train import optim, optimizer_state
from luthier.train.settings import TrainSettings

pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

WORKS = (
    {"name": "lora", "r": 4},
    {"name": "lora", "r": 4, "dora": True},
    {"name": "lora", "r": 4, "train_norms": True},
    {"name": "ia3"},
    {"name": "prefix", "length": 3},
    {"name": "prompt", "length": 3},
    {"name": "p_tuning", "length": 3, "hidden": 16},
    {"name": "bottleneck", "reduction": 4},
    {"name": "stack", "preset": "mam", "length": 3, "reduction": 4},
)
REFUSED = (
    ("nf4", {"name": "full"}, "quantised base cannot be trained"),
    ("nf4", {"name": "last_layers"}, "quantised base cannot be trained"),
    ("nf4", {"name": "lora", "init": "pissa"}, "needs unquantised weights"),
    ("nf4", {"name": "peft", "type": "loha"}, "no layer for 4-bit weights"),
    ("int8", {"name": "lora", "dora": True}, "8-bit weights on a CPU"),
)


def base(kind: str) -> object:
    """A tiny Llama, packed."""
    return load_base(ModelSettings(path=str(tiny.folder("llama")), quantize=kind, device="cpu"))


def test_a_run_on_a_packed_base_is_loaded_on_one(tmp_path: Path) -> None:
    """The artefact is proved on the quantised base, and merges into the unquantised one."""
    lines = [{"prompt": f"w{i} w{i + 1}", "response": f"w{i + 2} w{i + 3}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    recipe = lu.Recipe.parse(f"""
model: {{path: {tiny.folder("llama")}, quantize: nf4, device: cpu}}
data: {{train: {tmp_path / "rows.jsonl"}, max_length: 32, template: plain}}
method: {{name: lora, r: 4}}
train: {{steps: 8, batch_size: 8, lr: 1e-2, threads: 1, save_every: never, evaluate_every: never}}
evaluate: {{samples: {{count: 1, max_new_tokens: 4}}, generate_rows: 0, bootstrap: 100}}
""")
    with suppress(GateFailed):
        lu.run(recipe, run_dir=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text("utf-8"))
    assert status["artefact"]["reload_difference"] == 0
    again = lu.load(tmp_path / "run")
    assert again.base.model.is_quantized
    assert not lu.load(tmp_path / "run", quantize="none").base.model.__dict__.get("is_quantized", False)
    again.merge(tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").is_file()


def named(spec: object) -> str:
    return "-".join(map(str, spec.values())) if isinstance(spec, dict) else str(spec)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("spec", WORKS, ids=named)
def test_trains_saves_and_loads(spec: dict, kind: str, tmp_path: Path) -> None:
    """float32 weights that all learn over a packed base that keeps its bits; what is loaded is what was saved."""
    if kind == "int8" and spec.get("dora"):
        pytest.skip("refused, see below")
    model = base(kind)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    attached = METHODS.parse(spec).attach(model, 0)
    declared = {weight.data_ptr() for weight in attached.parameters().values()}
    optimizer = torch.optim.AdamW(attached.parameters().values(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = battery.loss(model, attached)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(w.grad is not None and w.dtype == torch.float32 for w in attached.parameters().values())
    frozen = {name: t for name, t in model.model.state_dict().items() if name in before}
    assert all(torch.equal(t, before[name]) for name, t in frozen.items() if t.data_ptr() not in declared)
    attached.save(tmp_path)
    again = base(kind)
    other = METHODS.get(spec["name"]).reload(tmp_path, again)
    with torch.no_grad():
        assert torch.equal(battery.outputs(again, other), battery.outputs(model, attached))
    with pytest.raises(CannotMerge):
        attached.merge()


@pytest.mark.parametrize(("kind", "spec", "what"), REFUSED, ids=named)
def test_refused(kind: str, spec: dict, what: str) -> None:
    """In words, before a step."""
    with pytest.raises(ModelError, match=what):
        METHODS.parse(spec).attach(base(kind), 0)


def test_paged_8bit_adamw_goes_on_where_it_was() -> None:
    """On a CPU: moments in 8 bits, steps like AdamW's, and the optimizer's memory through tensors is the same one."""
    target = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))

    def begin(weights: torch.Tensor, name: str) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        weight = torch.nn.Parameter(weights.clone())
        return weight, optim.build(TrainSettings(optimizer=name), {"w": weight}, 1e-2)

    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()

    packed, optimizer = begin(torch.zeros(64, 128), "paged_adamw_8bit")
    plain, other = begin(torch.zeros(64, 128), "adamw")
    steps(packed, optimizer, 12)
    steps(plain, other, 12)
    kept, numbers = optimizer_state.to_tensors(optimizer)
    assert {kept["0.state1"].dtype, kept["0.state2"].dtype} == {torch.uint8}
    assert float((packed - plain).abs().max()) < 0.02 < float(plain.detach().abs().max())
    again, fresh = begin(packed.detach(), "paged_adamw_8bit")
    optimizer_state.restore(fresh, kept, numbers)
    steps(packed, optimizer, 5)
    steps(again, fresh, 5)
    assert torch.equal(packed, again)
