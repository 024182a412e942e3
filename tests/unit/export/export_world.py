"""The built-in base with strong random adapters, and held-out rows: nothing is trained, parity is all that counts."""

import numpy as np
import torch

from luthier.adapted import attach
from luthier.core.types import IGNORE, Row
from luthier.data.templates import choose
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS

CLASSES = ("chess", "dancing", "football")
TEXTS = (
    ("Where does Ada live?", "In London, since 1835."),
    ("北京在哪里？", "在中国北方。"),
    ("Name 3 colours", "red, green, blue"),
    ("What is 12 + 30?", "42"),
    ("it's a  test\nof lines", "ok, we'll see ..."),
    ("Who plays chess on Mondays?", "Tomas and Ines."),
)


def made(method, task="instruct", labels=(), path="builtin", scale=0.05, template="auto", **model):
    """An adapted model whose every trained weight was moved."""
    base = load_base(ModelSettings(path=str(path), **model), task=task, labels=labels or None)
    adapted = attach(
        base, method, TASKS.parse(task), choose(template, base.tokenizer, task), seed=1, labels=tuple(labels)
    )
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.add_(torch.randn(weight.shape, generator=source) * scale)
    return adapted.eval()


def rows_for(adapted):
    """Held-out rows of the six texts."""
    from luthier.core.types import Turn

    rows = []
    for number, (question, answer) in enumerate(TEXTS):
        prompt = adapted.template.prompt_ids((Turn("user", question),), adapted.base.tokenizer)
        ids = prompt + adapted.base.tokenizer(answer, add_special_tokens=False).input_ids + [adapted.base.stop_ids[0]]
        labels = [IGNORE] * len(prompt) + ids[len(prompt) :]
        target = number % 3 if adapted.task.has_head else None
        rows.append(Row(f"r{number}", np.array(ids, np.int32), np.array(labels, np.int32), target))
    return rows


def trained(method, steps=40, **options):
    """An adapted model that knows the six texts."""
    from luthier.engine.batch import from_rows

    adapted = made(method, scale=0.0, **options)
    batch = from_rows(rows_for(adapted))
    optimizer = torch.optim.Adam(adapted.parameters_by_name().values(), lr=5e-3)
    adapted.train()
    for _ in range(steps):
        loss = adapted.loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return adapted.eval()
