"""A training that a fault can hit: a toy with dropout and a buffer, in a run directory with both logs.

`in_child` runs it in a forked process, so that it can be killed, starved and signalled.
"""

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from luthier.core import atomic
from luthier.core.errors import LuthierError, StopRequested
from luthier.core.events import TIMING, Emitter, JsonLines, read_jsonl
from luthier.core.signals import handle_signals
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.train import loop, tensor_file
from luthier.train.checkpoint import Checkpoints
from luthier.train.loss import LossOutput
from luthier.train.settings import EarlyStopSettings, TrainSettings

STEPS = 12
WORDS = 16


class Toy:
    """Embedding → dropout → linear; `reparam` trains a table through a network and saves a fixed buffer too."""

    def __init__(self, kind="direct"):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(WORDS, 8), nn.Dropout(0.2), nn.Linear(8, WORDS))
        if kind == "reparam":
            self.net.add_module("shift", nn.Sequential(nn.Linear(WORDS, 4), nn.Tanh(), nn.Linear(4, WORDS)))
            self.net.register_buffer("fixed", torch.randn(3))

    def parameters_by_name(self):
        return dict(self.net.named_parameters())

    def state(self):
        return {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def load_state(self, state):
        self.net.load_state_dict(state)

    def train(self, mode=True):
        self.net.train(mode)

    def eval(self):
        self.net.eval()

    def loss(self, batch):
        each = nn.functional.cross_entropy(
            self.net(batch.input_ids), batch.targets, reduction="none", ignore_index=-100
        )
        rows, count = batch.segment_of_token(), len(batch.row_ids)
        sums = torch.zeros(count).index_add(0, rows, each.detach())
        counts = torch.zeros(count).index_add(0, rows, (batch.targets != -100).float())
        return LossOutput(each.sum(), batch.supervised, sums, counts)


class Source:
    """16 rows, groups of two micro-batches of two rows."""

    def __init__(self):
        made = np.random.default_rng(0)
        self.rows = []
        for index in range(16):
            ids = made.integers(0, WORDS, made.integers(3, 9)).astype(np.int32)
            self.rows.append(Row(f"r{index}", ids, ids.copy()))

    def steps(self, epoch):
        return 4

    def groups(self, epoch, start=0):
        order = np.random.default_rng(epoch).permutation(16)
        for index in range(start, 4):
            rows = [self.rows[i] for i in order[index * 4 : index * 4 + 4]]
            yield [from_rows(rows[:2]), from_rows(rows[2:])]


def train(
    folder, kind="direct", loss=None, listen=None, background=True, max_disk=None, toy=None, measure=None, **settings
):
    """The same call begins, continues and repeats; ends with final.safetensors. Returns (toy, state)."""
    folder = Path(folder)
    toy = toy or Toy(kind)
    options = {
        "save_every": 2,
        "evaluate_every": 3,
        "early_stop": EarlyStopSettings(patience=50),
        "optimizer": "adamw",
        **settings,
    }
    events, rows = JsonLines(folder / "events.jsonl"), JsonLines(folder / "rows.jsonl")
    emit = Emitter(events, *([listen] if listen else []))

    def validate():
        if measure is not None:
            return {"loss": measure(toy)}
        with torch.no_grad():
            made = [toy.loss(batch) for group in Source().groups(99) for batch in group]
        return {"loss": sum(float(m.total) for m in made) / sum(m.count for m in made)}

    try:
        emit("start", rows=16)
        state = loop.fit(
            toy,
            Source(),
            loss or toy.loss,
            settings=TrainSettings(**options),
            lr=0.05,
            total_steps=STEPS,
            checkpoints=Checkpoints(
                folder / "checkpoints",
                logs={"events": events, "rows": rows},
                background=background,
                max_disk=max_disk,
                keep=2,
            ),
            validate=validate,
            emit=emit,
            resume=True,
            seed=1,
            on_rows=lambda record: rows(record),
        )
        with atomic.publish_folder(folder / "adapter") as staged:
            tensor_file.write(staged / "adapter_model.safetensors", toy.state())
    finally:
        events.close()
        rows.close()
    return toy, state


def outcome(folder):
    """What must be equal to the bit: final weights, both logs without the fields that are times."""
    folder = Path(folder)
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    log = [{k: v for k, v in record.items() if k not in TIMING} for record in read_jsonl(folder / "events.jsonl")]
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        "events": json.dumps(log),
        "rows": json.dumps(
            [{k: v for k, v in r.items() if k not in TIMING} for r in read_jsonl(folder / "rows.jsonl")]
        ),
    }


def in_child(work):
    """Fork and run `work`; returns the pid. Exit code: that of the error, 0, or 99 for what nobody foresaw."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        with handle_signals():
            work()
        code = 0
    except (LuthierError, StopRequested) as error:
        code = error.exit_code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid):
    """Exit code of a child; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(work, most=3):
    """The same command until it ends well; returns how often it was run."""
    for count in range(1, most + 1):
        code = wait(in_child(work))
        if code == 0:
            return count
        assert code in (3, 5), f"exit code {code}"
    raise AssertionError("it never finished")
