"""Generation for evaluation: luthier's batched decode against transformers' generate with PEFT, same adapter, greedy.

    python benchmarks/bench_decode.py [--rounds 2] [--prompts 32] [--shape llama25m] [--out FILE.json]

The base is made from a config and has random weights, wide enough that its answers do not fall into a loop; the LoRA is
random too, so it acts. An answer ends at any of a random set of tokens: lengths are ragged, a few run to the limit. In
every round all arms answer the same prompts one after the other in one process, and the ratio of CPU-seconds is taken
inside the round. Token identity is counted, not assumed. Rounds are kept as they are done.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core import atomic

SPREAD = 0.06
"""Standard deviation of all weight matrices."""
STOPPING = 1 / 50
"""Share of the vocabulary that ends an answer."""
LIMIT = 128
ARMS = ("transformers + PEFT, one by one", "luthier", "transformers + PEFT, all left-padded")


def main() -> None:
    """All rounds; the file is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--shape", default="llama25m")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode.json")
    parser.add_argument("--arms", type=int, default=len(ARMS), help="2 leaves the left-padded peer out.")
    given = parser.parse_args()
    import torch

    from luthier.bench.control import machine
    from luthier.bench.work import make_rows

    torch.set_num_threads(1)
    rounds: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch, torch.no_grad():
        peer, adapted, stops = arms_of(Path(scratch), given.shape)
        vocabulary = adapted.base.model.config.vocab_size
        for number in range(given.rounds):
            rows = make_rows(given.prompts, vocabulary, seed=number + 1)
            prompts = [row["input_ids"][: max(4, sum(label == -100 for label in row["labels"]))] for row in rows]
            rounds.append(one_round(peer, adapted, prompts, stops, ARMS[: given.arms]))
            work = {"shape": given.shape, "prompts": given.prompts, "limit": LIMIT}
            atomic.write_json(given.out, {"work": work, "machine": machine(), **summed(rounds)})


def arms_of(folder: Path, shape: str) -> tuple[Any, Any, list[int]]:
    """(PEFT's model, luthier's, the tokens that end an answer): the same weights and the same adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from luthier.adapted import AdaptedModel
    from luthier.bench.work import LORA, base_of, prepare
    from luthier.methods import METHODS
    from luthier.tasks import TASKS

    prepare(folder, shape, 1)
    source = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0, SPREAD, generator=source)
    model.save_pretrained(folder / "model")
    base = base_of(folder / "model")
    attached = METHODS.parse(LORA).attach(base, 0)
    for weight in attached.parameters().values():
        weight.normal_(0, SPREAD, generator=source)
    attached.save(folder / "adapter")
    peer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), str(folder / "adapter"))
    vocabulary = model.config.vocab_size
    stops = torch.randperm(vocabulary, generator=source)[: int(vocabulary * STOPPING)].tolist()
    return peer.eval(), AdaptedModel(base, attached, None, TASKS.parse("instruct"), LORA).eval(), stops


def one_round(
    peer: Any, adapted: Any, prompts: list[list[int]], stops: list[int], arms: tuple[str, ...]
) -> dict[str, Any]:
    """CPU-seconds and answers of every arm."""
    from luthier.models import decode

    def ours() -> list[list[int]]:
        made = decode.generate(adapted, prompts, max_new_tokens=LIMIT, stop_ids=stops)
        return [one.ids for one in made]

    runs = {
        ARMS[0]: lambda: [answer for prompt in prompts for answer in theirs(peer, [prompt], stops)],
        ARMS[1]: ours,
        ARMS[2]: lambda: theirs(peer, prompts, stops),
    }
    spent, answers = {}, {}
    for name in arms:
        begin = time.process_time()
        answers[name] = runs[name]()
        spent[name] = time.process_time() - begin
    wanted = answers[ARMS[0]]
    same = {name: sum(a == b for a, b in zip(made, wanted, strict=True)) for name, made in answers.items()}
    return {"cpu_s": spent, "identical": same, "lengths": sorted(map(len, wanted))}


def theirs(peer: Any, prompts: list[list[int]], stops: list[int]) -> list[list[int]]:
    """transformers' own loop; a batch is left-padded, and what follows a row's end is cut away."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": LIMIT, "do_sample": False, "eos_token_id": stops, "pad_token_id": 1}
    made = peer.generate(input_ids=ids, attention_mask=mask, **options)[:, width:].tolist()
    ends = set(stops)
    cuts = [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in made]
    return [row[:cut] for row, cut in zip(made, cuts, strict=True)]


def summed(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens a CPU-second and the ratios to luthier."""
    arms = {}
    for name in rounds[0]["cpu_s"]:
        ratios = [one["cpu_s"][name] / one["cpu_s"][ARMS[1]] for one in rounds]
        tokens = sum(sum(one["lengths"]) for one in rounds)
        spent = sum(one["cpu_s"][name] for one in rounds)
        arms[name] = {
            "tokens_per_cpu_s": round(tokens / spent, 1),
            "identical": sum(one["identical"][name] for one in rounds),
            "times": {"median": round(statistics.median(ratios), 3), "range": [min(ratios), max(ratios)]},
        }
    return {"arms": arms, "answers": sum(len(one["lengths"]) for one in rounds), "rounds": rounds}


if __name__ == "__main__":
    main()
