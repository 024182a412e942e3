"""Sums of LoRAs, and a LoRA out of a full fine-tune."""

from __future__ import annotations

from pathlib import Path

import cells as battery
import models as tiny
import pytest
import torch

from luthier.core.errors import ModelError
from luthier.methods import METHODS, arithmetic
from luthier.methods.lora import Lora


def saved(place: Path, seed: int, **settings: object) -> Path:
    """A shaken LoRA on disk."""
    attached = METHODS.parse({"name": "lora", "r": 3, **settings}).attach(tiny.base("llama"), seed)
    with torch.no_grad():
        source = torch.Generator().manual_seed(seed)
        for weight in attached.parameters().values():
            weight.add_(torch.randn(weight.shape, generator=source) * 0.1)
    attached.save(place)
    return place


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """layer → s·B·A."""
    return {name: b @ a for name, (a, b) in arithmetic._read(folder).parts.items()}


def test_weighted_sum_is_exact(tmp_path: Path) -> None:
    """Different ranks and scales; the result loads as an ordinary LoRA."""
    first, second = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, rslora=True)
    made = arithmetic.combine([first, second], tmp_path / "sum", [0.3, -0.7])
    assert made.worst == 0.0
    one, two, both = updates(first), updates(second), updates(tmp_path / "sum")
    for name, found in both.items():
        assert torch.allclose(found, 0.3 * one[name] - 0.7 * two[name], atol=1e-5)
    base = tiny.base("llama")
    with torch.no_grad():
        assert battery.outputs(base, Lora.reload(tmp_path / "sum", base)).isfinite().all()


def test_average_of_one_is_itself(tmp_path: Path) -> None:
    """To the bit of its update."""
    first = saved(tmp_path / "a", 1)
    arithmetic.average([first], tmp_path / "mean")
    assert all(torch.allclose(updates(first)[n], u, atol=1e-6) for n, u in updates(tmp_path / "mean").items())


@pytest.mark.parametrize("how", ["ties", "dare"])
def test_ties_and_dare_tell_their_error(tmp_path: Path, how: arithmetic.How) -> None:
    """Full rank holds everything; a low rank tells what it lost."""
    sources = [saved(tmp_path / str(seed), seed) for seed in (1, 2)]
    whole = arithmetic.combine(sources, tmp_path / "whole", [0.5, 0.5], how, rank=32)
    small = arithmetic.combine(sources, tmp_path / "small", [0.5, 0.5], how, rank=1)
    assert whole.worst < 1e-5 < 0.1 < small.worst


def test_ties_of_equals_keeps_the_largest() -> None:
    """Two equal updates: the result is that update with its small half cut."""
    update = torch.tensor([[4.0, -3.0], [0.2, 0.1]])
    found = arithmetic._ties([update, update], [0.5, 0.5], 0.5, 0)
    assert torch.allclose(found, torch.tensor([[4.0, -3.0], [0.0, 0.0]]))


def test_dare_keeps_the_mean() -> None:
    """Dropping with rescaling is unbiased."""
    update = torch.ones(200, 200)
    assert float(arithmetic._dare([update], [1.0], 0.3, 0).mean()) == pytest.approx(1.0, abs=0.02)


def test_other_layers_are_refused(tmp_path: Path) -> None:
    """Adapters on different layers have no sum."""
    first, second = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, targets="q")
    with pytest.raises(ModelError, match="different layers"):
        arithmetic.combine([first, second], tmp_path / "c", [1, 1])


def test_lora_from_a_full_fine_tune(tmp_path: Path) -> None:
    """A difference of rank 2 is found back exactly with rank 2; rank 1 tells its error."""
    from luthier.methods.lora import Lora as Member

    base = tiny.base("llama")
    attached = Member(Member.Params(r=2)).attach(base, 0)
    battery.shake(attached)
    with torch.no_grad():
        wanted = battery.outputs(base, attached)
        attached.merge()
    base.model.save_pretrained(tmp_path / "tuned")
    base.tokenizer.save_pretrained(tmp_path / "tuned")
    made = arithmetic.extract(tiny.folder("llama"), tmp_path / "tuned", tmp_path / "lora", 2)
    assert made.worst < 1e-4
    other = tiny.base("llama")
    with torch.no_grad():
        assert torch.allclose(battery.outputs(other, Lora.reload(tmp_path / "lora", other)), wanted, atol=1e-3)
    assert arithmetic.extract(tiny.folder("llama"), tmp_path / "tuned", tmp_path / "one", 1).worst > 0.05
