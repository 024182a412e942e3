"""Where the numbers of virtual tokens come from: a table, a network over a table, the model's own projections,
the input, or a library of tables. Each gives the flat table [P, width], or [S, P, width] for the rows of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.core.types import IGNORE
from luthier.engine.batch import Batch


class Source(nn.Module):
    """`length` is P."""

    length: int

    @abstractmethod
    def forward(self, batch: Batch | None) -> Tensor:
        """The table; `batch` is None where it is only saved, and sources that read the input refuse that."""


class Table(Source):
    """The numbers themselves."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.length = values.shape[0]
        self.prompt_embeddings = nn.Parameter(values.detach().float().clone())

    def forward(self, batch: Batch | None) -> Tensor:
        return self.prompt_embeddings


class Encoded(Source):
    """A small table through a network, plus a fixed start: offset + net(table). All of it is in the state."""

    offset: Tensor

    def __init__(self, values: Tensor, net: nn.Module, offset: Tensor | None = None):
        super().__init__()
        self.length = values.shape[0]
        self.embedding = nn.Parameter(values.detach().float().clone())
        self.net = net
        self.register_buffer("offset", torch.zeros(1) if offset is None else offset.detach().float().clone())

    def forward(self, batch: Batch | None) -> Tensor:
        return self.net(self.embedding) + self.offset


class Recurrent(nn.Module):
    """P-tuning's bidirectional LSTM and its head."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        self.lstm = nn.LSTM(
            width, hidden, layers, dropout=dropout if layers > 1 else 0.0, bidirectional=True, batch_first=True
        )
        self.head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.lstm(values[None])[0])[0]


def mlp(width: int, hidden: int, out: int, zero_last: bool = False) -> nn.Sequential:
    """Linear–tanh–linear of prefix tuning."""
    last = nn.Linear(hidden, out)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), last)


class Tied(Source):
    """One P_l in each layer; K = P_l W_K and V = P_l W_V through the frozen projections. P [L, P, hidden]."""

    def __init__(self, values: Tensor, projections: Sequence[Any]):
        super().__init__()
        self.length = values.shape[1]
        self.tied = nn.Parameter(values.detach().float().clone())
        self._project = list(projections)  # plain functions: frozen weights of the base, never of this module

    def forward(self, batch: Batch | None) -> Tensor:
        parts = [part for values, project in zip(self.tied, self._project, strict=True) for part in project(values)]
        return torch.cat(parts, dim=-1)


class Conditioned(Source):
    """Base table + slot gate · up(tanh(down(mean embedding of the prompt))); zero at the start.

    Only tokens before the first trained one are pooled: the answer must not be seen.
    """

    def __init__(self, values: Tensor, table: nn.Module, inside: int):
        super().__init__()
        self.length, width = values.shape
        self.prompt_embeddings = nn.Parameter(values.detach().float().clone())
        hidden = int(table.weight.shape[1])  # type: ignore[union-attr, index, arg-type]
        self.down, self.up = nn.Linear(hidden, inside), nn.Linear(inside, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.gate = nn.Parameter(torch.ones(self.length, 1))
        self._table = [table]  # in a list: it is the base's, not a part of this module

    def forward(self, batch: Batch | None) -> Tensor:
        if batch is None:
            raise ModelError("a prefix that depends on the input has no table of its own")
        pooled = pool_prompt(self._table[0], batch)
        change = self.up(torch.tanh(self.down(pooled)))
        return self.prompt_embeddings + self.gate * change[:, None]


class Library(Source):
    """One table for each task, [N, P, width]; every row takes its own."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.length = values.shape[1]
        self.tables = nn.Parameter(values.detach().float().clone())

    def forward(self, batch: Batch | None) -> Tensor:
        if batch is None:
            raise ModelError("a library of prefixes has one table for each task", remedy="save one task at a time")
        tasks = torch.zeros(len(batch.row_ids), dtype=torch.int64) if batch.tasks is None else batch.tasks
        if int(tasks.max()) >= len(self.tables) or int(tasks.min()) < 0:
            raise ModelError(
                f"a row belongs to task {int(tasks.max())}, there are {len(self.tables)} prefixes",
                where="method.tasks",
                remedy="list every task of the data in method.tasks",
            )
        return self.tables[tasks.to(self.tables.device)]


@torch.no_grad()
def pool_prompt(table: nn.Module, batch: Batch) -> Tensor:
    """[S, hidden] float32 mean of the embeddings of each row's tokens up to the one that predicts the first answer."""
    words = table(batch.input_ids).float()
    rows = batch.segment_of_token().to(words.device)
    count = len(batch.row_ids)
    place = torch.arange(len(words), device=words.device)
    last = torch.full((count,), len(words), device=words.device)
    trained = batch.targets.to(words.device) != IGNORE
    last = last.scatter_reduce(0, rows[trained], place[trained], "amin")
    seen = (place <= last[rows]).float()[:, None]
    total = torch.zeros(count, words.shape[1], device=words.device).index_add_(0, rows, words * seen)
    return total / torch.zeros(count, 1, device=words.device).index_add_(0, rows, seen)
