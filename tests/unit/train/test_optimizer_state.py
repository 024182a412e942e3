"""An optimizer's memory as tensors: nothing of it is left out, however it is nested."""

from __future__ import annotations

from typing import Any

import torch

from luthier.train import optimizer_state


class Wrapping(torch.optim.AdamW):
    """Gives its second moment within a mapping, as bitsandbytes gives its 8-bit moments."""

    def state_dict(self) -> dict[str, Any]:
        """Like torch's, one entry deeper."""
        found = super().state_dict()
        for values in found["state"].values():
            values["inside"] = {"exp_avg_sq": values.pop("exp_avg_sq")}
        return found


def test_moments_within_a_mapping_are_kept() -> None:
    """Restored, the next step is the one that would have come."""
    weight, source = torch.nn.Parameter(torch.zeros(4, 3)), torch.Generator().manual_seed(0)
    target = torch.randn(4, 3, generator=source)
    optimizer = torch.optim.AdamW([weight], lr=0.1)

    def step(one: torch.nn.Parameter, by: torch.optim.Optimizer) -> None:
        by.zero_grad()
        (one - target).square().sum().backward()
        by.step()

    for _ in range(3):
        step(weight, optimizer)
    wrapped = Wrapping([weight], lr=0.1)
    torch.optim.AdamW.load_state_dict(wrapped, optimizer.state_dict())
    tensors, numbers = optimizer_state.to_tensors(wrapped)
    assert {"0.exp_avg", "0.exp_avg_sq"} <= tensors.keys()
    again = torch.nn.Parameter(weight.detach().clone())
    fresh = torch.optim.AdamW([again], lr=0.1)
    optimizer_state.restore(fresh, tensors, numbers)
    step(weight, optimizer)
    step(again, fresh)
    assert torch.equal(weight, again)
