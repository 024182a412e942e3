"""FAULTS.md C: what comes in as a model, adapter, template or tokenizer is whole, finite, ours, or refused."""

import copy
import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import hostile
import pytest
import real_run
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file

from luthier import adapted as adapting
from luthier.core.errors import LuthierError, ModelError
from luthier.core.seeding import seed_everything
from luthier.methods import METHODS
from luthier.models import anatomy, gate, gate_tensors
from luthier.models.load import resolve
from luthier.tasks import TASKS

RIGHT = [
    "lora", *({"name": "lora", **more} for more in (
        {"r": 1}, {"r": 32, "alpha": 64}, {"targets": "q"}, {"targets": ["q", "v"]}, {"rslora": True}, {"dora": True},
        {"layers": [0]}, {"layers": [-1]}, {"init": "gaussian"}, {"init": "orthogonal"}, {"bias": "all"},
        {"train_norms": True}, {"r": 4, "dropout": 0.5})),
    "ia3", "prefix", {"name": "prefix", "length": 3}, {"name": "prefix", "length": 5, "mlp": 8}, "prompt",
    {"name": "prompt", "length": 7}, "p_tuning", {"name": "p_tuning", "length": 3, "encoder": "lstm"}, "bottleneck",
    {"name": "bottleneck", "style": "houlsby"}, {"name": "bottleneck", "style": "parallel"}, {"name": "last_layers"},
    {"name": "full", "layers": "-1"}, {"name": "peft", "type": "loha"}, {"name": "peft", "type": "lokr"},
    {"name": "peft", "type": "vera"},
    {"name": "stack", "methods": [{"name": "prefix"}, {"name": "bottleneck", "reduction": 8}]},
]  # fmt: skip


def fresh():
    """A base of its own."""
    made = real_run.stages().base
    model = copy.deepcopy(made.model)
    return dataclasses.replace(made, model=model, anatomy=anatomy.of(model))


def saved(method, folder):
    """A trained-looking adapter of this method."""
    seed_everything(3)
    made = adapting.attach(fresh(), method, TASKS.parse("instruct"), real_run.stages().data.template, seed=3)
    with torch.no_grad():
        for weight in made.parameters_by_name().values():
            weight.add_(0.01 * torch.randn_like(weight))
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return saved({"name": "lora", "r": 4}, tmp_path_factory.mktemp("adapters") / "lora")


def spoiled(lora, tmp_path, name="wrong"):
    return Path(shutil.copytree(lora, tmp_path / name))


def refused(folder, seconds=5.0):
    """The reason, told by the loader itself."""
    began = time.process_time()
    with pytest.raises(LuthierError) as caught:
        adapting.load_onto(folder, fresh())
    assert caught.value.exit_code == 2
    assert time.process_time() - began < seconds
    return str(caught.value)


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.soak)])
def test_fault_C1_mutated_safetensors(tmp_path, figure, lora, count):
    """Refused with a reason, or every number is finite and the library reads it."""
    tensors = load_file(lora / "adapter_model.safetensors")
    save_file({name: tensors[name] for name in sorted(tensors)[:4]}, tmp_path / "clean", metadata={"format": "pt"})
    clean, path, good, told = (tmp_path / "clean").read_bytes(), tmp_path / "m.safetensors", 0, 0
    for seed in range(count):
        path.write_bytes(hostile.mutated(clean, seed))
        began = time.process_time()
        try:
            gate_tensors.refuse_not_finite(gate_tensors.read_header(path))
        except ModelError:
            told += 1
        else:
            found = load_bytes(path.read_bytes())
            assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in found.values())
        assert time.process_time() - began < 1
        good += 1
    assert told > count // 3
    figure(good, count)


def test_fault_C1_a_header_of_a_million_tensors_is_cut_short(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(150_000)}
    path.write_bytes(hostile.safetensors({}, header))
    began = time.process_time()
    with pytest.raises(ModelError, match="tensors"):
        gate_tensors.read_header(path)
    path.write_bytes(struct.pack("<Q", 40 << 20) + b"{" + b" " * (41 << 20))
    with pytest.raises(ModelError, match="larger"):
        gate_tensors.read_header(path)
    assert time.process_time() - began < 4


def test_fault_C2_pickles_are_refused_by_their_format(tmp_path, figure, lora):
    folder = spoiled(lora, tmp_path)
    count = 0
    for name in hostile.pickles(folder):
        assert name in refused(folder)
        assert not (folder / hostile.CANARY).exists()
        count += 1
    figure(count, 10)


def wrong_adapters(lora, tmp_path):
    """(name, folder): thirty adapters that must not be loaded."""
    file = "adapter_model.safetensors"
    tensors = load_file(lora / file)
    names = sorted(tensors)

    def with_tensors(name, made):
        folder = spoiled(lora, tmp_path, name.replace(" ", "-"))
        save_file({key: value.contiguous() for key, value in made.items()}, folder / file, metadata={"format": "pt"})
        return name, folder

    yield with_tensors("half is missing", {name: tensors[name] for name in names[::2]})
    yield with_tensors("first layer is missing", {name: tensors[name] for name in names if ".0." not in name})
    yield with_tensors("one is missing", {name: tensors[name] for name in names[1:]})
    yield with_tensors("all renamed", {"x." + name: tensors[name] for name in names})
    yield with_tensors("A and B exchanged", {n.replace("lora_A", "lora_Q"): tensors[n] for n in names})
    yield with_tensors("transposed", {name: tensors[name].T for name in names})
    yield with_tensors("wider", {name: torch.cat([tensors[name]] * 2, 1) for name in names})
    yield with_tensors(
        "rank of another", {name: tensors[name][:2] if "lora_A" in name else tensors[name] for name in names}
    )
    yield with_tensors("no tensor", {})
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for value in (float("nan"), float("inf")):
            bad = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            bad[names[3]] = bad[names[3]].clone()
            bad[names[3]].view(-1)[5] = value
            yield with_tensors(f"{value} in {str(dtype)[6:]}", bad)
    for part in ("weights", "tokenizer"):
        folder = spoiled(lora, tmp_path, f"other-{part}")
        card = json.loads((folder / "luthier.json").read_text())
        card["base"]["fingerprint"][part] = "0" * 64
        (folder / "luthier.json").write_text(json.dumps(card))
        yield f"trained on other {part}", folder
    for name, content in (("empty", b""), ("cut", (lora / file).read_bytes()[:-100]), ("text", b"hello" * 100)):
        folder = spoiled(lora, tmp_path, f"file-{name}")
        (folder / file).write_bytes(content)
        yield f"weights {name}", folder
    for name in (file, "adapter_config.json"):
        folder = spoiled(lora, tmp_path, f"without-{name}")
        (folder / name).unlink()
        yield f"without {name}", folder
    folder = spoiled(lora, tmp_path, "later")
    (folder / "luthier.json").write_text(json.dumps(json.loads((folder / "luthier.json").read_text()) | {"format": 99}))
    yield "format of the future", folder
    for kind in ("prefix", "bottleneck", "ia3", "p_tuning"):
        other = saved(kind, tmp_path / kind)
        folder = spoiled(other, tmp_path, f"half-{kind}")
        found = load_file(folder / file)
        keep = sorted(found)[: len(found) // 2]
        save_file({name: found[name] for name in keep}, folder / file, metadata={"format": "pt"})
        yield f"half of a {kind}", folder
        folder = spoiled(lora, tmp_path, f"lora-over-{kind}")
        shutil.copy(other / file, folder / file)
        yield f"{kind} weights in a lora folder", folder


def test_fault_C3_C4_C5_wrong_adapters_are_refused(tmp_path, figure, lora):
    reasons = {name: refused(folder) for name, folder in wrong_adapters(lora, tmp_path)}
    assert all(reasons.values())
    assert len(reasons) >= 30
    figure(len(reasons), len(reasons))


def test_fault_C5_the_same_shapes_with_other_weights(lora):
    """A base with the same config whose weights differ in one number."""
    base = fresh()
    base.fingerprint = base.fingerprint | {"weights": "f" * 64}
    with pytest.raises(ModelError, match="weights"):
        adapting.load_onto(lora, base)


def test_fault_C4_each_dtype_with_a_nan_is_refused(tmp_path):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for value in (float("nan"), float("inf"), float("-inf")):
            tensor = torch.ones(4097, dtype=dtype)
            tensor[-1] = value
            save_file({"w": tensor}, tmp_path / "a.safetensors")
            with pytest.raises(ModelError, match="NaN or infinity"):
                gate_tensors.refuse_not_finite(gate_tensors.read_header(tmp_path / "a.safetensors"))


def test_fault_C3_right_adapters_are_accepted(tmp_path, figure):
    good = 0
    for number, method in enumerate(RIGHT):
        folder = saved(method, tmp_path / str(number))
        again = adapting.load_onto(folder, fresh())
        assert again.method["name"] == METHODS.parse(method).name
        good += 1
    assert good >= 30
    figure(good, len(RIGHT))


EVERY = pytest.mark.parametrize("nth", [3, pytest.param(1, marks=pytest.mark.soak)])
"""Each that hangs costs its two seconds of computing: a third of them every day, all of them in the soak."""


@EVERY
def test_fault_C6_hostile_configs(tmp_path, figure, lora, nth):
    folder, good = spoiled(lora, tmp_path), 0
    clean = json.loads((folder / "adapter_config.json").read_text())
    for name, change in list(hostile.CONFIGS.items())[::nth]:
        (folder / "adapter_config.json").write_text(json.dumps(clean | change))
        assert refused(folder, seconds=2.5), name
        good += 1
    figure(good, len(list(hostile.CONFIGS)[::nth]))


def test_fault_C6_hostile_cards(tmp_path, figure, lora):
    folder, good = spoiled(lora, tmp_path), 0
    clean = json.loads((folder / "luthier.json").read_text())
    for name, change in hostile.CARDS.items():
        (folder / "luthier.json").write_text(json.dumps(clean | change))
        assert refused(folder), name
        good += 1
    (folder / "luthier.json").write_text("[" * 5000)
    assert "luthier.json" in refused(folder)
    figure(good, len(hostile.CARDS))


def test_fault_C7_an_adapter_beside_the_model_is_not_put_on_the_base_unseen(tmp_path, lora):
    """transformers loads an adapter that lies in a model's folder, from pickles too; here the folder is refused."""
    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    folder = Path(shutil.copytree(resolve("builtin"), tmp_path / "model"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(lora / name, folder / name)
    with pytest.raises(ModelError, match="adapter beside the model"):
        load_base(ModelSettings(path=str(folder), device="cpu"))


def test_fault_C9_a_tokenizer_s_ids_lie_within_its_size(tmp_path):
    text = json.loads((resolve("builtin") / "tokenizer.json").read_text("utf-8"))
    text["model"]["vocab"]["xyzzy"] = 5_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="5000000"):
        gate.check_tokenizer(tmp_path)


def test_fault_C8_further_templates_of_a_folder_are_tried_too(tmp_path):
    folder = Path(shutil.copytree(resolve("builtin"), tmp_path / "model"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text(hostile.TEMPLATES["classes"])
    with pytest.raises(ModelError, match="chat template"):
        gate.check_tokenizer(folder)


@EVERY
def test_fault_C8_hostile_templates(figure, nth):
    good = 0
    for name, text in list(hostile.TEMPLATES.items())[::nth]:
        with pytest.raises(ModelError) as caught:
            gate.check_template(text)
        assert caught.value.exit_code == 2, name
        good += 1
    figure(good, 12 // nth)


def test_fault_C9_hostile_tokenizers(tmp_path, figure):
    clean = (resolve("builtin") / "tokenizer.json").read_text("utf-8")
    good, found = 0, hostile.tokenizers(clean)
    for name, text in found.items():
        path = tmp_path / "tokenizer.json"
        path.write_text(text, "utf-8")
        with pytest.raises(ModelError) as caught:
            gate.check_tokenizer(path)
        assert caught.value.exit_code == 2, name
        good += 1
    figure(good, len(found))


def test_fault_C3_vera_s_shared_projections_come_back_from_their_seed(tmp_path):
    """The adapter's own vectors are in the file, the projections are made again: the same logits."""
    from luthier.core.types import Row
    from luthier.engine.batch import from_rows

    seed_everything(3)
    vera = {"name": "peft", "type": "vera"}
    made = adapting.attach(fresh(), vera, TASKS.parse("instruct"), real_run.stages().data.template, seed=3)
    with torch.no_grad():
        for weight in made.parameters_by_name().values():
            weight.add_(0.1 * torch.randn_like(weight))
    made.save(tmp_path / "vera")
    ids = torch.arange(5, 40).numpy()
    batch = from_rows([Row("r", ids, ids.copy())])
    again = adapting.load_onto(tmp_path / "vera", fresh()).token_nll(batch)
    assert torch.equal(made.eval().token_nll(batch), again)
    with made.off():
        assert not torch.equal(made.token_nll(batch), again)


@pytest.mark.parametrize("nth", [6, pytest.param(1, marks=pytest.mark.soak)])
def test_fault_C7_a_hundred_hostile_files_run_nothing(tmp_path, figure, nth):
    """Under an audit hook: no spawn, no connection, no opening of foreign code; nothing asked on stdin."""
    program = Path(__file__).parent / "audited.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(program), str(tmp_path), str(nth)], capture_output=True, text=True,
                          env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=550)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().split("\n")[-1])
    assert found["loaded"] == []
    assert found["events"] == []
    assert found["canaries"] == []
    assert found["control"] == ["open", "os.system"], "the hook sees what it must see"
    assert found["count"] >= 100 // nth
    assert "y/N" not in done.stdout + done.stderr
    figure(found["refused"], found["count"])


def test_fault_B5_targets_that_match_nothing_or_explode():
    for targets in ("nothing_like_this", "${HOME}", ["q_proj_", "v_proj_"], "(a+)+$", "[" * 100):
        began = time.process_time()
        with pytest.raises(LuthierError) as caught:
            METHODS.parse({"name": "lora", "targets": targets}).attach(fresh(), 0)
        assert caught.value.exit_code == 2
        assert "q_proj" in str(caught.value), "the candidates are listed"
        assert time.process_time() - began < 1.5


def test_fault_C10_merging_leaves_the_base_file_and_the_logits_as_they_were(tmp_path, lora):
    before = (resolve("builtin") / "model.safetensors").read_bytes()
    loaded = adapting.load_onto(lora, fresh())
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        tuned = loaded.base.model(input_ids=ids).logits
        loaded.attached.merge()
        merged = loaded.base.model(input_ids=ids).logits
    assert float((tuned - merged).abs().max()) <= 1e-5
    assert (resolve("builtin") / "model.safetensors").read_bytes() == before


def test_fault_C11_the_base_is_bitwise_the_same_after_100_adapters_came_and_went(lora):
    base = fresh()
    loaded = adapting.load_onto(lora, base)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad(), loaded.off():
        first = base.model(input_ids=ids).logits
    for _ in range(100):
        with torch.no_grad():
            tuned = base.model(input_ids=ids).logits
            with loaded.off():
                off = base.model(input_ids=ids).logits
        assert torch.equal(off, first)
        assert not torch.equal(tuned, off)
