"""Serving many adapters: the slot engine beside Hugging Face's and PEFT's `generate`, interleaved, one thread.

    python benchmarks/bench_serve.py [--rounds 3] [--more] [--out benchmarks/results/serve.json]

A random Llama of 25 M parameters (8 × 384, 6/2 heads, vocabulary 16,384) and four LoRAs of rank 16. Rates are useful
tokens for each second of processor time of this process (wall time stands beside): other work on the machine moves
processor time less. Ratios are taken within a round, then the median over rounds. `--more` keeps the rounds that the
file holds already, so that a busy machine can be asked for one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier.adapted import attach
from luthier.data.templates import choose
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve.engine import Engine
from luthier.serve.registry import Registry
from luthier.serve.request import Request, Sampling
from luthier.tasks import TASKS

VOCAB, LORAS, ROWS, NEW = 16384, 4, 16, 32


@dataclass(frozen=True)
class Asked:
    """One request of the load."""

    name: str
    prompt: list[int]
    new: int


def build(folder: Path) -> None:
    """The model, its tokenizer and the LoRAs, as folders."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(2.5)
    model.save_pretrained(folder / "model")
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index for index in range(3, VOCAB)}}
    made = Tokenizer(models.WordLevel(words, unk_token="w3"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "w3"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder / "model")
    for number in range(LORAS):
        base = load_base(ModelSettings(path=str(folder / "model")))
        task = TASKS.parse("language_model")
        template = choose("plain", base.tokenizer, "language_model")
        adapted = attach(base, {"name": "lora", "r": 16, "targets": "all-linear"}, task, template, seed=number)
        source = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in adapted.parameters_by_name().values():
                weight.add_(torch.randn(weight.shape, generator=source) * 0.05)
        adapted.save(folder / f"lora{number}")


class Peers:
    """transformers and PEFT."""

    def __init__(self, folder: Path):
        from peft import PeftModel

        self.plain = LlamaForCausalLM.from_pretrained(folder / "model").eval()
        fresh = LlamaForCausalLM.from_pretrained(folder / "model")
        self.peft = PeftModel.from_pretrained(fresh, folder / "lora0", adapter_name="lora0")
        for number in range(1, LORAS):
            self.peft.load_adapter(folder / f"lora{number}", adapter_name=f"lora{number}")
        self.peft.eval()
        for model in (self.plain, fresh):
            model.generation_config.eos_token_id = None

    def _generate(self, model: Any, rows: list[Asked], **options: Any) -> list[list[int]]:
        longest, new = max(len(row.prompt) for row in rows), max(row.new for row in rows)
        ids = torch.tensor([[0] * (longest - len(row.prompt)) + row.prompt for row in rows])
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=new,
                do_sample=False, pad_token_id=0, **options,
            )  # fmt: skip
        return [line[longest : longest + row.new].tolist() for line, row in zip(made, rows, strict=True)]

    def one_by_one(self, rows: list[Asked]) -> list[list[int]]:
        """Each request alone, with its adapter."""
        made = []
        for row in rows:
            if row.name == "base":
                made += self._generate(self.plain, [row])
            else:
                self.peft.set_adapter(row.name)
                made += self._generate(self.peft, [row])
        return made

    def static(self, rows: list[Asked]) -> list[list[int]]:
        """Batches of 16 as they come, adapters mixed through adapter_names; a batch ends with its longest row."""
        made = []
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            made += self._generate(self.peft, part, adapter_names=[row.name for row in part])
        return made


class Served:
    """The slot engine."""

    def __init__(self, folder: Path):
        self.base = load_base(ModelSettings(path=str(folder / "model")))
        self.registry = Registry(self.base, "base")
        for number in range(LORAS):
            self.registry.load(f"lora{number}", folder / f"lora{number}")

    def request(self, row: Asked, deliver: Callable[[Any], None] = lambda token: None) -> Request:
        """A greedy request without stop tokens."""
        return Request(self.registry.get(row.name), row.prompt, Sampling(0.0, max_new_tokens=row.new), deliver)

    def run(self, engine: Engine, rows: list[Asked]) -> list[list[int]]:
        """All at once."""
        engine.held.clear()  # what earlier rounds left must not be used again
        requests = [self.request(row) for row in rows]
        for request in requests:
            engine.submit(request)
        while not engine.idle:
            engine.step()
        return [request.made for request in requests]


def measure(work: Callable[[], list[list[int]]]) -> dict[str, Any]:
    """Useful tokens a second of processor time and of wall time, and what was made."""
    cpu, wall = time.process_time(), time.perf_counter()
    made = work()
    count = sum(map(len, made))
    seconds = time.process_time() - cpu
    return {"rate": count / seconds, "wall_rate": count / (time.perf_counter() - wall), "made": made}


def equal(names: list[str], count: int = ROWS) -> list[Asked]:
    """Rows of one length."""
    source = random.Random(1)
    return [Asked(names[at % len(names)], [source.randrange(3, VOCAB) for _ in range(32)], NEW) for at in range(count)]


def ragged(names: list[str]) -> list[Asked]:
    """Prompts of 8 to 96 tokens, answers of 4 to 64."""
    source = random.Random(2)
    return [
        Asked(names[at % len(names)], [source.randrange(3, VOCAB) for _ in range(source.randint(8, 96))],
              source.randint(4, 64))
        for at in range(2 * ROWS)
    ]  # fmt: skip


def first_tokens(served: Served, engine: Engine, rows: list[Asked]) -> float:
    """Median milliseconds of processor time until the first token, when all ask at once."""
    engine.held.clear()
    began, came = time.process_time(), [0.0] * len(rows)

    def deliver(place: int) -> Callable[[Any], None]:
        def first(token: Any) -> None:
            came[place] = came[place] or time.process_time() - began

        return first

    for place, row in enumerate(rows):
        engine.submit(served.request(row, deliver(place)))
    while not engine.idle:
        engine.step()
    return 1e3 * statistics.median(came)


def gap(served: Served, budget: int) -> dict[str, float]:
    """Eight answers run, a prompt of 1,500 tokens arrives: the longest step, and its time to the first token."""
    engine, source = Engine(served.base, slots=9, budget=budget), random.Random(3)
    engine.pool.reserve(1600)
    for row in equal(["base"], 8):
        engine.submit(served.request(Asked("base", row.prompt, 40)))
    for _ in range(6):
        engine.step()
    first: list[float] = []
    long = Asked("base", [source.randrange(3, VOCAB) for _ in range(1500)], 2)
    start = time.process_time()
    engine.submit(served.request(long, lambda token: first.append(time.process_time())))
    steps = []
    while not engine.idle:
        before = time.process_time()
        engine.step()
        steps.append(time.process_time() - before)
    return {"worst_gap_ms": 1e3 * max(steps), "first_token_ms": 1e3 * (first[0] - start)}


def one_round(peers: Peers, served: Served, engines: dict[int, Engine]) -> dict[str, Any]:
    """Every arm once."""
    names = [f"lora{number}" for number in range(LORAS)]
    mixed, base, uneven = equal(names), equal(["base"]), ragged(names)
    arms: dict[str, Callable[[], list[list[int]]]] = {
        "peft alone": lambda: peers.one_by_one(mixed[:4]),
        "peft static": lambda: peers.static(mixed),
        "engine": lambda: served.run(engines[16], mixed),
        "engine base": lambda: served.run(engines[16], base),
        "transformers one": lambda: peers.one_by_one(base[:1]),
        "engine one": lambda: served.run(engines[1], base[:1]),
        "peft static ragged": lambda: peers.static(uneven),
        "engine ragged": lambda: served.run(engines[16], uneven),
    }
    order = list(arms)
    random.shuffle(order)
    found = {name: measure(arms[name]) for name in order}
    rate = {name: found[name]["rate"] for name in arms}
    chunked, unchunked = gap(served, 256), gap(served, 1 << 20)

    def same(one: str, other: str) -> str:
        pairs = list(zip(found[one]["made"], found[other]["made"], strict=False))
        return f"{sum(a == b for a, b in pairs)}/{len(pairs)}"

    return {
        "rates": rate,
        "wall_rates": {name: found[name]["wall_rate"] for name in arms},
        "equal_answers": {
            "one by one": same("engine", "peft alone"),
            "static": same("engine", "peft static"),
            "one request": same("engine one", "transformers one"),
        },
        "first_token_ms": {
            "16 at once": first_tokens(served, engines[16], mixed),
            "alone": first_tokens(served, engines[1], base[:1]),
        },
        "long_prompt": {"budget 256": chunked, "unchunked": unchunked},
        "ratios": {
            "engine 4 LoRA / peft one by one": rate["engine"] / rate["peft alone"],
            "engine 4 LoRA / peft static, equal lengths": rate["engine"] / rate["peft static"],
            "engine 4 LoRA / peft static, ragged": rate["engine ragged"] / rate["peft static ragged"],
            "engine one request / transformers": rate["engine one"] / rate["transformers one"],
            "engine 4 LoRA / engine base": rate["engine"] / rate["engine base"],
            "worst gap, budget 256 / unchunked": chunked["worst_gap_ms"] / unchunked["worst_gap_ms"],
        },
    }


WANTED = {
    "engine 4 LoRA / peft one by one": (">=", 7.0),
    "engine 4 LoRA / peft static, equal lengths": (">=", 1.35),
    "engine 4 LoRA / peft static, ragged": (">=", 2.5),
    "engine one request / transformers": (">=", 0.95),
    "engine 4 LoRA / engine base": (">=", 0.85),
    "worst gap, budget 256 / unchunked": ("<=", 0.25),
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    parser.add_argument("--more", action="store_true", help="keep the rounds that the file holds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        build(Path(scratch))
        peers, served = Peers(Path(scratch)), Served(Path(scratch))
        engines = {slots: Engine(served.base, slots=slots) for slots in (1, 16)}
        served.run(engines[16], equal([f"lora{number}" for number in range(LORAS)])[:4])
        kept = options.more and options.out.is_file()
        rounds = json.loads(options.out.read_text("utf-8"))["rounds"] if kept else []
        for number in range(options.rounds):
            rounds.append(one_round(peers, served, engines))
            print(f"round {number + 1}:", json.dumps(rounds[-1]["ratios"]), flush=True)
    write(options.out, rounds, engines[16].pool.bytes_per_slot())


def write(out: Path, rounds: list[dict[str, Any]], slot: int) -> None:
    """Medians and ranges over the rounds, printed and as JSON."""
    ratios = {}
    for name, (sign, wanted) in WANTED.items():
        values = [one["ratios"][name] for one in rounds]
        middle = statistics.median(values)
        met = middle >= wanted if sign == ">=" else middle <= wanted
        ratios[name] = {"median": middle, "range": [min(values), max(values)], "wanted": f"{sign} {wanted}", "met": met}
        print(f"{name:45} {middle:6.2f}  ({min(values):.2f} to {max(values):.2f})  wanted {sign} {wanted}: {met}")
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    report = {"machine": machine, "ratios": ratios, "bytes_per_slot": slot, "rounds": rounds}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
