"""Train the built-in base from scratch: `python -m luthier.models.builtin.build --out DIR`.

A script rather than a recipe: it needs Muon, token weights and a growing population, which nobody else asked
for. Two processes of one thread each, with summed gradients, beat one process of two threads.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from luthier.models.builtin import probe
from luthier.models.builtin.corpus import documents
from luthier.models.builtin.tokens import build as build_tokenizer
from luthier.models.builtin.tokens import check, encode, wrap
from luthier.models.builtin.world import people

LENGTH, ROWS = 128, 32
"""Tokens of a training window; windows of a step, all processes together."""
STAGES = ((0.0, 40), (0.2, 107), (0.4, 320))
"""(share of the training at which it begins, people)."""
MUON, ADAM = 0.02, 2e-3
DROPOUT = ((0.75, 0.0), (0.17, 0.1), (0.08, 0.5))
"""(share of the documents, share of the merges that are left out)."""


def config(vocabulary: int) -> Any:
    """A Llama of about a million parameters; its widths suit quantised formats (multiples of 32)."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def stream(tokenizer: Any, count: int, seed: int, population: int, shuffled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Documents as one run of ids with weights; a quarter of them with broken merges."""
    known = people(shuffled=shuffled)[:population]
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for part, (share, dropout) in enumerate(DROPOUT):
        made = encode(tokenizer, list(documents(known, int(count * share), seed * len(DROPOUT) + part)), dropout)
        ids += made[0]
        weights += made[1]
    order = np.random.default_rng(seed).permutation(len(ids))
    return np.concatenate([ids[i] for i in order]), np.concatenate([weights[i] for i in order])


class Muon:
    """Momentum, orthogonalised by Newton–Schulz (Jordan et al. 2024); for matrices of the layers."""

    def __init__(self, weights: list[nn.Parameter]):
        self.weights = weights
        self.momenta = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update with Nesterov momentum .95."""
        for weight, momentum in zip(self.weights, self.momenta, strict=True):
            assert weight.grad is not None
            momentum.mul_(0.95).add_(weight.grad)
            update = orthogonal(weight.grad + 0.95 * momentum)
            weight.mul_(1 - lr * 0.01)
            weight.add_(update, alpha=-lr * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Singular values near one (Newton–Schulz, five steps)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.t() if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.t()
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.t() if tall else x


def loss_of(model: Any, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross entropy, Σ w·nll / Σ w."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    each = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    flat = weights[:, 1:].flatten()
    return (each * flat).sum() / flat.sum()


def rate(step: int, total: int) -> float:
    """Warm-up of 50 steps, then linear to 2 %."""
    return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (1 - step / total))


def work(rank: int, processes: int, options: argparse.Namespace, tokenizer_text: str, port: int) -> None:
    """One process: its share of every step's windows."""
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    tokenizer = Tokenizer.from_str(tokenizer_text)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(config(tokenizer.get_vocab_size()))
    matrices = [w for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name]
    others = [w for name, w in model.named_parameters() if not (w.dim() == 2 and "embed" not in name)]
    muon, adam = Muon(matrices), torch.optim.Adam(others, lr=ADAM, betas=(0.9, 0.98))
    began, population, feed = time.perf_counter(), 0, Feed(tokenizer, options, rank, processes)
    for step in range(options.steps):
        population = [count for begin, count in STAGES if step >= begin * options.steps][-1]
        ids, weights = feed.next(population)
        loss = loss_of(model, ids, weights)
        model.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients(model, processes)
        times = rate(step, options.steps)
        muon.step(MUON * times)
        adam.param_groups[0]["lr"] = ADAM * times
        adam.step()
        if rank == 0 and (step + 1) % 100 == 0:
            seconds = time.perf_counter() - began
            sys.stderr.write(f"step {step + 1}/{options.steps} loss {loss.item():.3f} {seconds:.0f} s\n")
    counts = torch.as_tensor(feed.counts)
    dist.all_reduce(counts)
    if rank == 0:
        check(tokenizer, counts.numpy())
        save(model, tokenizer, options, time.perf_counter() - began)
    dist.barrier()
    dist.destroy_process_group()


class Feed:
    """One process's windows, made as they are needed; counts how often each piece was trained on."""

    def __init__(self, tokenizer: Any, options: argparse.Namespace, rank: int, processes: int):
        self.tokenizer, self.options, self.rank, self.processes = tokenizer, options, rank, processes
        self.counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
        self.need = ROWS // processes * LENGTH
        self.place = self.chunk = self.population = 0
        self.ids, self.weights = np.zeros(0, dtype=np.int64), np.zeros(0)

    def next(self, population: int) -> tuple[Tensor, Tensor]:
        """(ids, weights), each [rows, LENGTH]. A change of the population starts fresh text."""
        if population != self.population or self.place + self.need > len(self.ids):
            self.population, self.place, self.chunk = population, 0, self.chunk + 1
            seed = self.options.seed * 100_000 + self.chunk * self.processes + self.rank
            self.ids, self.weights = stream(self.tokenizer, 6000, seed, population, self.options.shuffled)
        part = slice(self.place, self.place + self.need)
        self.place += self.need
        np.add.at(self.counts, self.ids[part], 1)
        ids = torch.as_tensor(self.ids[part].astype(np.int64))
        return ids.view(-1, LENGTH), torch.as_tensor(self.weights[part]).view(-1, LENGTH)


def sum_gradients(model: Any, processes: int) -> None:
    """The mean over processes, in one message."""
    flat = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    dist.all_reduce(flat)
    flat /= processes
    start = 0
    for weight in model.parameters():
        weight.grad.copy_(flat[start : start + weight.numel()].view_as(weight))
        start += weight.numel()


def save(model: Any, tokenizer: Any, options: argparse.Namespace, seconds: float) -> None:
    """Write the model folder: weights stored in half precision, loaded in single; then measure what was stored."""
    from transformers import LlamaForCausalLM

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(out)
    settings = json.loads((out / "config.json").read_text("utf-8"))
    settings["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    wrapped = wrap(tokenizer)
    wrapped.save_pretrained(out)
    generation = {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
    stored = LlamaForCausalLM.from_pretrained(out).eval()
    known = people(shuffled=options.shuffled)
    facts = {
        "parameters": sum(weight.numel() for weight in model.parameters()), "steps": options.steps,
        "tokens": options.steps * ROWS * LENGTH, "processes": options.processes, "seconds": round(seconds),
        "seed": options.seed, "shuffled_facts": options.shuffled,
        "held_out_loss": round(probe.held_out_loss(stored, wrapped), 4),
        "cloze_en": probe.cloze(stored, wrapped, known), "cloze_zh": probe.cloze(stored, wrapped, known, "zh"),
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shuffled", action="store_true", help="the same people with other facts: a control")
    options = parser.parse_args()
    text = build_tokenizer().to_str()
    port = 20_000 + int(math.fmod(time.time() * 1000, 20_000))
    mp.spawn(work, args=(options.processes, options, text, port), nprocs=options.processes)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
