"""What checkpoints and the finite check cost a step: 100 MB of state (33 MB of weights and AdamW's two moments).

    python benchmarks/bench_checkpoint.py [--rounds 4] [--save-every 5] [--out benchmarks/results/checkpoint.json]

Three arms run in turn in each round, on one thread: no checkpoints, written in the background, written in the step.
A step's time is from one `train` event to the next, saves between them included; ratios are taken within a round.
Two clocks: the wall (of worth on a quiet machine with a core to spare), and the computing of the training's own thread
(what a save takes from the step however busy the machine is; the writer's thread is not in it).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.events import Emitter
from luthier.core.types import Row
from luthier.engine.batch import Batch, from_rows
from luthier.train import keeping, loop
from luthier.train.checkpoint import Checkpoints, bytes_of
from luthier.train.loss import LossOutput
from luthier.train.settings import TrainSettings
from luthier.train.step import refuse_bad_weights

LAYERS, WIDTH, TOKENS, STEPS = 8, 1020, 1536, 12
ARMS = ("none", "background", "in the step")


class Wide:
    """Linear layers over fixed features of the tokens."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        self.features = torch.randn(64, WIDTH)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All weights."""
        return dict(self.net.named_parameters())

    def state(self) -> dict[str, Tensor]:
        """Copies."""
        return {name: weight.detach().clone() for name, weight in self.net.state_dict().items()}

    def load_state(self, state: Any) -> None:
        """Inverse of `state`."""
        self.net.load_state_dict(state)

    def train(self, mode: bool = True) -> None:
        """No dropout here."""

    def eval(self) -> None:
        """No dropout here."""

    def loss(self, batch: Batch) -> LossOutput:
        """Mean square of the outputs."""
        each = self.net(self.features[batch.input_ids.long() % 64]).square().mean(1)
        return LossOutput(each.sum(), len(each), each.detach().sum()[None], torch.tensor([float(len(each))]))


class Same:
    """The same row in every step."""

    def __init__(self) -> None:
        ids = np.arange(TOKENS, dtype=np.int32)
        self.batch = from_rows([Row("r", ids, ids.copy())])

    def steps(self, epoch: int) -> int:
        """Steps of an epoch."""
        return STEPS

    def groups(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """One micro-batch a step."""
        yield from ([self.batch] for _ in range(start, STEPS))


def now() -> np.ndarray:
    """[wall, computing of this thread] in seconds."""
    return np.array([time.perf_counter(), time.thread_time()])


def step_seconds(arm: str, save_every: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Mean seconds from step to step, and those of each save in the training's own thread; each by both clocks."""
    stamps: list[np.ndarray] = []
    stalls: list[np.ndarray] = []

    def listen(record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            stamps.append(now())

    original = keeping._write

    def timed(*arguments: Any, **named: Any) -> None:
        began = now()
        original(*arguments, **named)
        stalls.append(now() - began)

    keeping._write = timed
    model = Wide()
    try:
        with tempfile.TemporaryDirectory() as folder:
            points = None if arm == "none" else Checkpoints(Path(folder) / "c", keep=2, background=arm == "background")
            settings = TrainSettings(save_every=save_every, evaluate_every="never", early_stop=None)
            loop.fit(model, Same(), model.loss, settings=settings, lr=1e-4, total_steps=STEPS, checkpoints=points,
                     emit=Emitter(listen))  # fmt: skip
    finally:
        keeping._write = original
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1), stalls[:-1]


def finite_check() -> float:
    """Seconds of computing for looking at all weights once."""
    model = Wide()
    weights = list(model.parameters_by_name().values())
    made = loop.Loop(model, Same(), model.loss, TrainSettings(), 1, None, None, Emitter(), 0, None, None)  # type: ignore[arg-type]
    times = []
    for _ in range(10):
        began = time.thread_time()
        refuse_bad_weights(made, weights)
        times.append(time.thread_time() - began)
    return statistics.median(times)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    stalls: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for _ in range(asked.rounds):
        for arm in ARMS:
            seconds, waits = step_seconds(arm, asked.save_every)
            found[arm].append(seconds)
            stalls[arm] += waits
    result: dict[str, Any] = {
        "state_mb": round(3 * bytes_of(Wide().state()) / 1e6, 1),
        "save_every": asked.save_every,
        "rounds": asked.rounds,
        "steps_of_a_round": STEPS,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": 1},
        "load_average": round(os.getloadavg()[1], 1),
    }
    for clock, name in enumerate(("wall", "thread")):
        of = {arm: [float(times[clock]) for times in found[arm]] for arm in ARMS}
        result[name] = {
            "step_s": {arm: round(statistics.median(times), 4) for arm, times in of.items()},
            "save_s": {arm: round(statistics.median(float(w[clock]) for w in stalls[arm]), 4) for arm in ARMS[1:]},
            "cost_percent": {arm: ratios(of[arm], of["none"]) for arm in ARMS[1:]},
        }
    check, step = finite_check(), result["thread"]["step_s"]["none"]
    result["finite_check"] = {"thread_s": round(check, 5), "percent_of_step": round(100 * check / step, 2)}
    text = json.dumps(result, indent=2) + "\n"
    if asked.out:
        asked.out.write_text(text, "utf-8")
    print(text)


def ratios(times: list[float], plain: list[float]) -> dict[str, float]:
    """Percent more than without, by rounds."""
    more = [100 * (one / other - 1) for one, other in zip(times, plain, strict=True)]
    return {"median": round(statistics.median(more), 2), "least": round(min(more), 2), "most": round(max(more), 2)}


if __name__ == "__main__":
    main()
