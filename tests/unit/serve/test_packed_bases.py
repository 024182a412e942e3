"""Runs on 4-bit and 8-bit bases: served on the base of their training, packed alike, or refused in words."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from luthier.adapted import attach, load
from luthier.core.errors import MissingExtra, ModelError
from luthier.data.templates import choose
from luthier.models import decode, quantized
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve import start
from luthier.serve.engine import Engine
from luthier.serve.labels import _logits
from luthier.serve.one_by_one import OneByOne
from luthier.serve.registry import Registry
from luthier.serve.request import Request, Sampling
from luthier.tasks import TASKS

sys.path.insert(0, str(Path(__file__).parents[2] / "battery"))
import models as tiny

PROMPTS = [[5, 9, 11, 30], list(range(3, 25)), [40, 41]]
METHODS = {"lora": {"name": "lora", "r": 4}, "prefix": {"name": "prefix", "length": 3}}
LABELS = ("no", "yes")


def made(folder, method, kind, task="language_model"):
    """An adapter of strong random weights on a tiny Llama packed as `kind`."""
    labels = LABELS if task == "classify" else None
    settings = ModelSettings(path=str(tiny.folder("llama")), quantize=kind, device="cpu")
    base = load_base(settings, task=task, labels=labels)
    template = choose("plain", base.tokenizer, task)
    adapted = attach(base, method, TASKS.parse(task), template, seed=1, labels=labels or ())
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    adapted.save(folder)
    return folder


def repacked(folder, other, kind):
    """The same adapter under a card that names another packing."""
    shutil.copytree(folder, other)
    card = json.loads((other / "luthier.json").read_text())
    card["base"]["quantize"] = kind
    (other / "luthier.json").write_text(json.dumps(card))
    return other


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "engine"), [("nf4", Engine), ("int8", OneByOne)])
def test_a_run_on_a_packed_base_says_what_generate_says(tmp_path, kind, engine):
    """On the packed base, in company, for every method; labels too. The unpacked base would say something else."""
    pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")
    folders = {name: made(tmp_path / name, method, kind) for name, method in METHODS.items()}
    folders["head"] = made(tmp_path / "head", METHODS["lora"], kind, "classify")
    base = start.open_base(None, folders, threads=1)
    assert base.model.is_quantized
    build, way, reason = start.engine_for(base, 4)
    serving = build()
    assert type(serving) is engine
    assert ("outliers" in reason) == (kind == "int8")
    registry, asked = Registry(base, "base", (), way), []
    for name, folder in folders.items():
        registry.load(name, folder)
    for ids in PROMPTS:
        for name in ("base", *METHODS):
            sampling = Sampling(temperature=0.0, max_new_tokens=12)
            request = Request(registry.get(name), list(ids), sampling, lambda token: None, frozenset((2,)))
            asked.append((name, ids, request))
            serving.submit(request)
    while not serving.idle:
        serving.step()

    def said(adapted, ids):
        return decode.generate(adapted, [ids], max_new_tokens=12, stop_ids=(2,))[0].ids

    alone = {name: load(folders[name]) for name in METHODS}
    unpacked = load(folders["lora"], quantize="none")
    for name, ids, request in asked:
        if name == "base":
            with alone["lora"].off():
                assert request.made == said(alone["lora"], ids)
        else:
            assert request.made == said(alone[name], ids)
    assert any(request.made != said(unpacked, ids) for name, ids, request in asked if name == "lora")
    wanted = _logits(load(folders["head"]), ["w5 w6", "w7"])
    torch.testing.assert_close(_logits(registry.get("head").labels, ["w5 w6", "w7"]), wanted, atol=1e-5, rtol=1e-5)


def test_bases_packed_otherwise_do_not_share_a_server(tmp_path):
    """A run of a packed base on an unpacked one, at start and over the network."""
    plain = made(tmp_path / "plain", METHODS["lora"], "none")
    repacked(plain, tmp_path / "four", "nf4")
    base = start.open_base(None, {"plain": plain}, threads=1)
    registry = Registry(base, "base", (tmp_path,))
    registry.load("plain", plain)
    with pytest.raises(ModelError, match="four was trained on a base packed as nf4, and the server holds an unpacked"):
        registry.load("four", tmp_path / "four")
    with pytest.raises(Exception, match="adapter was refused"):
        registry.load_under_roots("four", "four")


def test_a_packed_base_needs_bitsandbytes(tmp_path, monkeypatch):
    """`luthier serve` of a QLoRA run without the extra: the missing piece by name, not other answers."""
    plain = made(tmp_path / "plain", METHODS["lora"], "none")
    four = repacked(plain, tmp_path / "four", "nf4")
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="quant"):
        start.open_base(None, {"four": four}, threads=1)
