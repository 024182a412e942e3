"""Other people's loops as arms: which there are, whom they fit, names of LoRA factors; each peer for real where its
interpreter is named by LUTHIER_PEER_<PEER>."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.bench import arms, control, crew
from luthier.bench.peers import factors, peer, run, torchtune, trainer
from luthier.bench.shapes import SHAPES
from luthier.bench.worker import Worker
from luthier.core.errors import RecipeError

OTHERS = ("llamafactory", "swift", "torchtune", "litgpt", "axolotl")


def test_peers_are_named_with_their_interpreters():
    assert control.interpreters(["trl=a/b"], None) == {"trl": "a/b"}
    assert control.interpreters([], "c") == {"trl": "c"}
    assert control.interpreters([f"{name}=p" for name in OTHERS]) == dict.fromkeys(OTHERS, "p")
    with pytest.raises(RecipeError, match="no peer 'llama-factory'") as raised:
        control.interpreters(["llama-factory=x"])
    assert raised.value.remedy == "one of axolotl, litgpt, llamafactory, swift, torchtune, transformers, trl, unsloth"
    with pytest.raises(RecipeError, match="PEER=PATH"):
        control.interpreters(["trl"])


def test_every_peers_arm_has_its_file_and_every_usual_arm_its_peer():
    for name, kind in arms.KINDS.items():
        if kind.peer:
            file = Path(peer.__file__).with_name(f"{peer.FILES[name.partition('_')[0]]}.py")
            assert "class Arm(" in file.read_text("utf-8")
    for one, names in arms.USUAL.items():
        assert {arms.KINDS[name].peer for name in names} == {one}
        assert set(names) <= {name for name, kind in arms.KINDS.items() if kind.peer == one}
    assert set(arms.USUAL) == set(arms.PEERS) - {"transformers"}


def test_an_arm_that_does_not_fit_the_model_is_refused_before_anything_is_made(monkeypatch):
    given = dict.fromkeys(OTHERS, "p")
    for name in ("litgpt", "litgpt_sorted", "torchtune", "torchtune_packing", "swift"):
        with pytest.raises(RecipeError, match=f"the arm {name} is for llama models, not opt") as raised:
            control.choose([name], given, architecture="opt")
        assert raised.value.where == "--shape"
        assert control.choose([name], given)[-1] == name
    usual = control.choose([], given, architecture="opt")
    assert [name for name in usual if arms.KINDS[name].peer in ("litgpt", "torchtune", "swift")] == []
    assert {"llamafactory_packing", "axolotl_packing"} <= set(usual)
    assert {SHAPES[name][0] for name in ("llama25m", "opt125m")} == {"llama", "opt"}
    monkeypatch.setattr(control, "_first", lambda *given, **more: pytest.fail("something was made"))
    with pytest.raises(RecipeError, match="the arm litgpt is for llama models"):
        control.bench(["litgpt"], shape="opt125m", pythons=["litgpt=p"])
    with pytest.raises(RecipeError, match="the arm unsloth is for cuda"):
        control.choose(["unsloth"], {"unsloth": "p"})
    assert control.choose(["unsloth"], {"unsloth": "p"}, "cuda")[-1] == "unsloth"
    with pytest.raises(RecipeError, match="the arm axolotl needs an interpreter"):
        control.choose(["axolotl"], {})


def lora(layers=2, heads=4, size=6, groups=2, rank=3):
    """Factors of queries and values by PEFT's names, every number another."""
    made, number = {}, 0
    outputs = {"q": heads * size, "v": groups * size}
    for layer in range(layers):
        for part, rows in outputs.items():
            for side, shape in (("A", (rank, 10)), ("B", (rows, rank))):
                count = shape[0] * shape[1]
                made[factors.PEFT.format(layer, part, side)] = torch.arange(number, number + count).view(shape)
                number += count
    return made


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_factors_go_to_litgpt_and_back():
    given = lora()
    made = factors.to_litgpt(given)
    assert list(made) == [f"transformer.h.{layer}.attn.qkv.lora_{side}" for layer in (0, 1) for side in "AB"]
    assert made["transformer.h.1.attn.qkv.lora_A"].shape == (6, 10)
    assert made["transformer.h.1.attn.qkv.lora_B"].shape == (24 + 12, 3)
    assert torch.equal(made["transformer.h.1.attn.qkv.lora_B"][24:], given[factors.PEFT.format(1, "v", "B")])
    assert same(factors.from_litgpt(made, 24), given)


def test_factors_go_to_torchtune_and_back():
    given = lora()
    made = factors.to_torchtune(given, 4)
    assert "layers.1.attn.q_proj.lora_b.weight" in made
    assert same(factors.from_torchtune(made, 4), given)
    q = given[factors.PEFT.format(0, "q", "B")]
    paired = made["layers.0.attn.q_proj.lora_b.weight"]
    assert torch.equal(paired[:6], q[[0, 3, 1, 4, 2, 5]])  # halves of a head become neighbours
    assert torch.equal(paired[6:12], q[[6, 9, 7, 10, 8, 11]])
    assert torch.equal(made["layers.0.attn.v_proj.lora_b.weight"], given[factors.PEFT.format(0, "v", "B")])


def test_both_layouts_of_rotary_turns_give_the_same_products():
    """What `in_pairs` is for: neighbours turned against each other, or halves, over rows that were moved with it."""
    size = 8
    source = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, size, generator=source, dtype=torch.float64)
    angle = torch.linspace(0.1, 2, size // 2, dtype=torch.float64)

    def halves(values, turn):
        one, other = values[: size // 2], values[size // 2 :]
        return torch.cat([one * turn.cos() - other * turn.sin(), other * turn.cos() + one * turn.sin()])

    def pairs(values, turn):
        one, other = values[0::2], values[1::2]
        turned = (one * turn.cos() - other * turn.sin(), other * turn.cos() + one * turn.sin())
        return torch.stack(turned, -1).flatten()

    moved = [factors.in_pairs(one[:, None], 1)[:, 0] for one in (query, key)]
    want = halves(query, 3 * angle) @ halves(key, angle)
    assert float(pairs(moved[0], 3 * angle) @ pairs(moved[1], angle)) == pytest.approx(float(want), rel=1e-12)


def test_a_peer_on_a_gpu_is_not_told_to_use_the_cpu(monkeypatch):
    on = {"lr": 1.0, "clip_norm": 1.0, "device": "cuda", "dtype": "bfloat16"}
    assert (trainer.arguments(on, 4, 4)["use_cpu"], trainer.arguments(on, 4, 4)["bf16"]) == (False, True)
    off = {**on, "device": "cpu", "dtype": "float32"}
    assert (trainer.arguments(off, 4, 4)["use_cpu"], trainer.arguments(off, 4, 4)["bf16"]) == (True, False)
    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda name: object())
    assert (trainer.attention(on), trainer.attention(off)) == ("flash_attention_2", "sdpa")
    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda name: None)
    assert trainer.attention(on) == "sdpa"


def test_packs_micro_batches_and_order():
    assert trainer.packs_a_step({"rows_per_step": 16, "tokens": 6400, "count": 50, "longest": 512}) == 4
    assert trainer.packs_a_step({"rows_per_step": 2, "tokens": 100, "count": 10, "longest": 512}) == 1
    assert [torchtune.largest(16, rows) for rows in (64, 24, 6, 17)] == [16, 12, 6, 1]
    rows = [{"input_ids": [1] * length} for length in (3, 1, 2)]
    assert [len(row["input_ids"]) for row in trainer.by_length(rows)] == [1, 2, 3]


class Skipping(peer.Peer):
    """A loop that takes what it is told to, and makes as many updates."""

    def load(self):
        self.weight = torch.nn.Parameter(torch.ones(1))
        return torch.nn.Module()

    def embeddings(self):
        return torch.nn.Identity()

    def reset(self, adapter):
        self.adapter = adapter

    def training(self, rows, one_step):
        optimizer = torch.optim.SGD([self.weight], 0.0)

        def run():
            self.slots += self.work["takes"]
            for _ in range(self.work["updates"]):
                self.weight.grad = torch.full((1,), 3.0)
                optimizer.step()
            return 1.5

        return run

    def gradients(self):
        return {"weight": self.weight.grad.clone()}


def test_an_epoch_that_leaves_rows_out_is_no_epoch(tmp_path):
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    work = {"device": "cpu", "rows_per_step": 2, "checked": [0, 1], "probe": "p", "start": "s", "updates": 1}
    made = Skipping({**work, "takes": 12}, "x", rows)
    assert made.answer({"do": "warm"})["slots"] == 12
    assert made.adapter == "s"
    with pytest.raises(RuntimeError, match="took 11 tokens of 12"):
        Skipping({**work, "takes": 11}, "x", rows).epoch(rows)
    found = made.answer({"do": "check", "save": str(tmp_path / "g.safetensors")})
    assert (found["loss"], found["versions"]["torch"], made.adapter) == (1.5, torch.__version__, "p")
    for updates in (0, 2):
        with pytest.raises(RuntimeError, match=f"{updates} updates"):
            Skipping({**work, "takes": 12, "updates": updates}, "x", rows).check(str(tmp_path / "g"))


def test_the_script_hides_no_library_and_imports_nothing_of_luthier():
    """Its files are called after the libraries that they drive."""
    words = (
        "import runpy, sys; sys.argv = ['run.py', 'f', 'a', '1']\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('script', {run.__file__!r})\n"
        "script = importlib.util.module_from_spec(spec); spec.loader.exec_module(script)\n"
        f"sys.path.insert(0, {str(Path(run.__file__).parent)!r})\n"
        "import types\n"
        "try: script.main(__import__('pathlib').Path('/nowhere'), 'litgpt', 1)\n"
        "except (FileNotFoundError, ImportError): pass\n"
        "import bench_peers.litgpt\n"
        "found = importlib.util.find_spec('litgpt')\n"
        "assert found is None or 'bench' not in found.origin, found\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'luthier'], 'luthier was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Work and references of the tiny shape."""
    folder = tmp_path_factory.mktemp("peers")
    judge = Worker(folder, "judge")
    judge.answer("prepare", {"shape": "tiny", "rows": 24})
    judge.answer("reference", {"objectives": ["answers", "rows"]})
    return folder, judge


def test_the_rows_objective_is_the_mean_of_the_rows_own_means(made):
    folder, _ = made
    facts = json.loads((folder / "reference.json").read_text())
    work = json.loads((folder / "work.json").read_text())
    given = peer.peer_of(folder, "transformers")
    given.reset(work["probe"])
    means = []
    with torch.no_grad():
        for index in work["checked"]:
            row = given.rows[index]
            ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
            means.append(float(given.model(input_ids=ids, labels=labels).loss))
    assert facts["rows"]["loss"] == pytest.approx(np.mean(means), rel=1e-6)
    assert abs(facts["rows"]["loss"] - facts["answers"]["loss"]) > 1e-4


def test_a_peers_check_goes_through_its_whole_loop(made):
    folder, judge = made
    found = peer.peer_of(folder, "transformers").check(str(folder / "peer.safetensors"))
    assert found["steps"] == 1
    check = judge.answer("compare", {"found": found, "objective": "answers"})
    assert check["ok"]
    assert check["gradient_error"] < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trl", *OTHERS])
def test_a_peer_for_real(name, made):
    """Check, epoch and saved adapter of every usual arm, in the interpreter that the environment names."""
    variable = f"LUTHIER_PEER_{name.upper()}"
    if variable not in os.environ:
        pytest.skip(f"{variable} names no interpreter with {name}")
    folder, judge = made
    start = judge.answer("judge", {"adapter": str(folder / "start"), "objective": "answers"})["loss"]
    for arm in arms.USUAL[name]:
        process = crew.Arm(arm, folder, os.environ[variable], 1)
        try:
            found = process.order("check", save=str(folder / f"{arm}.safetensors"))
            check = judge.answer("compare", {"found": found, "objective": arms.KINDS[arm].objective})
            assert check["ok"], (arm, check)
            assert check["gradient_error"] < 5e-6
            process.order("warm")
            went = process.order("go", save=str(folder / arm))
        finally:
            process.end()
        assert went["slots"] >= sum(len(row["input_ids"]) for row in json.loads((folder / "rows.json").read_text()))
        assert judge.answer("judge", {"adapter": str(folder / arm), "objective": "answers"})["loss"] < start - 1e-5
