"""The engine against a float64 reference, one row at a time: the loss, and the gradient of every trained weight.

The engine side is the product's: one flat batch in float32, chunked loss. The reference shares nothing of it where the
model allows: padded layout, whole logits, torch's own cross entropy, autograd, all in float64.
"""

import numpy as np
import pytest
import torch
from tests.battery.models import LABELS, base

from luthier.adapted import attach
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.models import forward
from luthier.tasks import TASKS

METHODS = {
    "lora": {"name": "lora", "r": 4, "dropout": 0.0},
    "prefix": {"name": "prefix", "length": 5},
    "bottleneck": {"name": "bottleneck", "size": 6, "dropout": 0.0},
}
KINDS = ("llama", "qwen3", "opt", "gpt2", "bert")


def rows(classify):
    source = np.random.default_rng(0)
    made = []
    for index, length in enumerate((5, 17, 9, 9, 3, 26)):
        ids = source.integers(3, 96, length).astype(np.int32)
        labels = np.where(np.arange(length) < length // 3, -100, ids)
        made.append(Row(f"r{index}", ids, labels, target=index % len(LABELS) if classify else None))
    return made


def adapted_of(kind, method, dtype):
    """The same weights in any precision; nothing that training would leave at zero is zero."""
    classify = kind == "bert"
    task = TASKS.parse("classify" if classify else "instruct")
    made = attach(base(kind, classify), METHODS[method], task, None, seed=0, labels=LABELS if classify else ())
    source = torch.Generator().manual_seed(1)
    for weight in made.parameters_by_name().values():
        weight.data += torch.randn(weight.shape, generator=source) * 0.1
    made.base.model.to(dtype)
    for weight in made.parameters_by_name().values():
        weight.data = weight.data.to(dtype)
    return made.train()


def reference(adapted, batch):
    """Summed loss of one row in float64; encoders with a prefix know the flat layout only (of one segment)."""
    states = forward.hidden(adapted.base, batch, adapted.virtual(batch), layout="padded")
    assert states.dtype == torch.float64
    if batch.labels is not None:
        logits, wanted = forward.row_logits(adapted.base, batch, states, adapted.virtual(batch)), batch.labels
    else:
        logits, wanted = forward.logits(adapted.base, states), batch.targets
    return torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")


def gradients(adapted):
    return {name: w.grad.double() for name, w in adapted.parameters_by_name().items() if w.grad is not None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "shared"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in KINDS if kind != "bert")]
)
def test_loss_and_every_gradient(kind, method, shared):
    given = rows(kind == "bert")
    if shared:
        common = np.arange(3, 23, dtype=np.int32)
        given = [
            Row(r.id, np.concatenate([common, r.input_ids]), np.concatenate([common, r.labels])) for r in given
        ]  # fmt: skip
    engine = adapted_of(kind, method, torch.float32)
    engine.layout, engine.base.shared_prefix = "flat", shared
    loss = engine.loss(from_rows(given)).total
    loss.backward()
    exact = adapted_of(kind, method, torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for row in given:
        one = reference(exact, from_rows([row]))
        one.backward()
        total += one.detach()
    assert float(loss.detach()) == pytest.approx(float(total), rel=1e-6)
    made, wanted = gradients(engine), gradients(exact)
    assert made.keys() == wanted.keys() == engine.parameters_by_name().keys()
    for name, gradient in wanted.items():
        error = (made[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert error < 2e-5, (name, float(error))
        assert float(gradient.norm()) > 1e-6, name
