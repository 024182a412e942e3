"""Writes docs/performance.md from benchmarks/results: `python docs/make_performance_page.py`. A test keeps it fresh."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

PAGE = Path(__file__).with_name("performance.md")
RESULTS = PAGE.parents[1] / "benchmarks" / "results"

HEAD = """\
# Performance

How fast the engine is, what each of its techniques gains, what a run takes, and how all of it was measured. The tables
are made from `benchmarks/results`; every ratio is in CPU-seconds of a process of its own, one thread, taken inside a
round in which both sides did the same work one right after the other. What was tried and did not pay stands in the
[log](log.md).

## The engine against its peers

`luthier bench` trains whole epochs on the same rows (lengths of instruction data: median 81 tokens, mean about 140,
most 512; 78 % of the tokens trained) from the same LoRA (r = 8 on the query and value projections of all layers), 16
rows a step, float32. The loss after the epoch is judged by one process for all arms. MFU is the share of the float32
product rate that is measured in the same round.

Before anything is timed, every arm's loss and the gradient of every adapter weight on six rows are held against a
float64 reference, one row at a time, at an adapter whose B is not zero: within 1e-4 beyond what plain float32 is itself
off by, one row at a time (2e-6 on `llama25m`, 4.5e-4 on `opt125m`). Lossy arms have to pass the product's own refusal
(gradient cosine under .99). An arm that fails is dropped, and the JSON says so; exact arms that took the same rows in
the same steps must also end at the same loss. Then a step that is not counted, then the rounds. A ratio is named only
where two rounds or more leave 1 out.

`--data FILE` takes your own rows in any format that luthier reads, `--python PEER=PATH` (trl, llamafactory, swift,
torchtune, litgpt, axolotl, unsloth, transformers) a peer from its own environment, `--prefix N` generates rows with a
common beginning, `--plot FILE.png` draws the rates with their ranges. Arms wait in memory together only while it holds
them, else they are started one after the other. The JSON has the raw seconds, every arm's library versions, and the
load before each round.

- TRL's SFTTrainer: `trl_single` has one row a micro-batch, 16 accumulated, so that nothing is padded; `trl_packing`
  rows packed to 512; `trl` its default of 4 rows × 4. `trl_sorted`: 16 rows in the order of their lengths, which is
  what its grouping by length comes to over a large data set; the few rows here still leave it padding. Its ratio
  divided by its positions a token is what a data set so large that no padding is left would show ("without padding").
  "TRL at its best" is the smallest of all these. On `opt125m` packing is not the same work: its loss is off by .002 and
  its gradient by more than its own size, so it is dropped there.
- `documents`: Trainer + PEFT, 4 rows × 4, everything padded to 512, loss on every token: a common tutorial's setup.
  `transformers`: the same with dynamic padding and loss on the answers.
- `luthier_int8`: the frozen base in int8 (lossy). `luthier_padded`: without segments. `luthier_plain_loss`: logits of
  every token. `luthier_shared_prefix`, `luthier_checkpointing`, `luthier_compiled`: with these. `luthier_trunk_cache`
  trains the top two layers from kept states, `luthier_top` without.

A machine that does other work at the same time makes all arms slower, those with a larger working set more so. The load
average stands with every pair in `engine.json`. One other process worked on the other core during most of them.
**The MFU of `opt125m` is too high**: its product rate was taken in disturbed moments (61–64 GFLOP/s against 78 on a
quiet machine; one pair came out at 1.01). With quiet seconds and the quiet rate it is about .89, which is reckoned from
two benches and not measured in one.
"""
PEERS = """
## The other peers, each at its default and at its best

`benchmarks/bench_peers.py`: every peer in its own environment and in **its own training loop**, on the same rows,
from the same adapter, with the same rate held constant, clipped at 1.0, 16 rows a step, float32, one thread. What each
arm sets, and what of a peer could not be gone through, stands in its file in `src/luthier/bench/peers`. An epoch that
does not take all tokens is no epoch: the arm is dropped. Compare a line with the rate of `luthier` in the same rounds;
the other core was at work meanwhile, which costs luthier's larger working set more.

- `…_sorted`: 16 rows in the order of their lengths, what grouping by length comes to; few rows leave it padding, as
  above. `…_packing`: the peer's own, where rows are kept apart on a CPU. `…_single`: one row a micro-batch, 16
  accumulated: **nothing is padded, and on one thread of a CPU that costs little**.
- LLaMA-Factory, ms-swift and axolotl are a Trainer with their own arguments, loader, collator and sampler. The first
  two recompute activations by default. ms-swift's packing and padding-free ask for flash attention and do not exist on
  a CPU.
- torchtune: its recipe `lora_finetune_single_device`, from its file. Its factors have their rows in another order
  (neighbours are turned, not halves); the check shows that they are mapped rightly.
- litgpt: its own GPT and `fit`. It does not clip gradients; the texts that it generates after the last epoch are left
  out, and its warm-up and cosine are replaced by a constant rate.
- litgpt and axolotl at their defaults accumulate one row at a time, and **each row's mean loss weighs the same, however
  many tokens of it are trained**: another objective than the mean over the tokens of a step. They are checked against
  that objective ("rows"); their loss after the epoch is of the common one.
- litgpt, torchtune and ms-swift know no OPT and are refused for `opt125m`, which was checked here and not timed:
  LLaMA-Factory's packing is exact on it (off by what float32 itself is off by), axolotl's is not (loss off by .0016,
  gradient by more than its own size: rows are not kept apart, as with TRL's), and its LoRA kernels end with an error.
- Unsloth needs a GPU: its arm was never run.
"""
GOALS = """
## The goals

What was to be reached, and what was seen. "Not measured" means that there is no figure, not that it is near. int8 as
the product runs it: forwards that are too coarse for the gradient's gate stay exact. Why a goal is missed stands in the
[log](log.md).
"""
SEQUENCE = """
## One sequence of 4096 tokens

Peak resident memory of two AdamW steps on one row of 4096 tokens, each in a process of its own, libraries and base
included: `plain` is Hugging Face's model and loss with PEFT, `luthier` the product's default.
"""
ABLATION = """
## What each technique gains

Each line is a pair of processes that differ in one technique, the same batch in both; above 1 is faster with it. Memory
is the peak above the loaded model, with it / without it. The loss shows that the exact ones are exact. A shared prefix
saves the layers, not the head, which is counted on trained tokens alone anyway: of 16 rows of 157 tokens after 128
shared ones, tokens shrink by 1.73 and products by 1.53. The other core was busy, except for the trunk cache over
adapters in all layers, which alone was measured again on a quiet machine (2.37 before, 2.49 then). `opt125m`'s line and
the 4096-token table above are older than blocks of queries.
"""
MEMORY = """
## The plan against what a run takes

`luthier check` against `luthier run`, settings of a Llama with 10 M weights, a process for each. `bench_memory.py`
knows twelve. Peak resident memory at the end of training, in MB, and seconds of training, on a quiet machine
(adafactor's seconds on a busy one, as the last measured: `lora` of 512 and of 4096 tokens, `prefix`). Memory is within
12 %, time within 14 %.
"""
INT8 = """
## What int8 costs

The same recipe with and without `train.int8_base`: same rows, same order, same start; both judged by the exact base on
the same test rows. A difference above zero is a loss of quality. The interval of a pair is over its test rows; that of
a mean is Student's over the seeds, and beside it stands how far the seeds of exact training lie apart.
"""
DECODE = """
## Answers for evaluation

Greedy answers by the same adapter, unmerged, on a `llama25m` with random weights: ragged, each ended by one of a random
set of tokens. All arms answer the same prompts in one process and thread; the ratio is that of their CPU-seconds.
"""
TAIL = """
## Exactness

- `tests/golden/test_float64.py`: loss and the gradient of every trained weight against float64, one row at a time,
  padded, whole logits, autograd: Llama, Qwen 3, OPT, GPT-2, BERT × LoRA, prefix, bottleneck; also with shared prefixes.
- `tests/golden/test_trajectories.py`: fifty steps packed, padded and with shared prefixes are the same training.
- `tests/golden/test_sharing.py`, `test_layouts.py`: every layout, virtual tokens, sliding windows, soft caps.
- Before every run three of its own rows are held against each other, flat and one by one, and the longest, not cut
  below the window of its layers; beyond 1e-4 padding is used. What puts its window into the mask only is padded too.
- When a base is loaded, luthier's logits are held against the model's own (factor and cap); others are refused.
- Rotary positions whose frequencies hang on the longest row of a batch (`dynamic`, `longrope`): rows beyond the
  original window go one by one, so that a row is the same in every batch (`tests/unit/models/test_changing_rope.py`).

## On a GPU: written, not measured

No GPU was at hand. What exists is tested for its logic on a CPU, and no number is claimed for it:

| part | state |
|---|---|
| bfloat16 base, chosen by itself where the GPU has it | written, unmeasured |
| FlashAttention over segments (`engine/varlen.py`, torch's `varlen_attn`; prefixes and shared prefixes too) | \
written, logic tested on a CPU against the other form, unmeasured |
| flex_attention over segments (`engine/flex.py`) where varlen does not fit: float32, soft caps, odd head sizes | \
written, masks and call tested on a CPU (gradients through a written-out stand-in: torch has no backward of it there), \
unmeasured; where neither is exact, the self-check takes a call a length, then padding |
| chunked loss with larger chunks | written, unmeasured |
| fp8 frozen base (`engine/fp8.py`), behind `train.int8_base`, from Ada and Hopper on: e4m3, a scale a channel and a \
token, forward and dX through `torch._scaled_mm`, refused under a cosine of .99 | written, logic and the very product \
tested on a CPU, unmeasured |
| Liger's RMSNorm and SwiGLU (`models/kernels.py`), where `liger_kernel` is installed | written; what is chosen, how \
it is called and that a wrong kernel is refused is tested on a CPU, unmeasured. Its rotation is not used: transformers \
has no seam for it |
| CUDA graphs over token budgets (`train.compile: on`, `models/compiled.py`): compiled layers are recorded, batches \
are padded to multiples of 256 tokens by a segment of its own | written, the padding tested on a CPU, recording \
unmeasured |
| `luthier bench --device cuda` (bfloat16 base, wall seconds, `torch.cuda.max_memory_allocated`, MFU against a product \
measured in the same run; llama1b, llama3b, llama8b; TRL with FlashAttention where its environment has it; \
`luthier_varlen` against `luthier_calls`; `luthier_fp8`) | written, its logic tested on a CPU, unmeasured |
| the plan of `luthier check`: device memory as torch counts it on a GPU (weights, gradients, activations, optimizer) \
| written, logic tested on a CPU, unmeasured |
| Unsloth as an arm of the bench (`--python unsloth=PATH`) | written from its documented interface and **never run** |
| LLaMA-Factory, torchtune, litgpt, ms-swift, axolotl as arms | run and checked on a CPU (above), unmeasured on a GPU |
"""

ENGINE_GOALS = {
    shape: {
        "over TRL at its best": ("luthier/trl_best", 2.0),
        "share of the measured product rate (MFU)": ("mfu", mfu),
        "over the documents' setup": ("luthier/documents", documents),
    }
    for shape, mfu, documents in (("llama25m", 0.7, 7), ("opt125m", 0.85, 5))
}
"""{shape: {what: (name in engine.json, at least)}}"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, *(engine(name, found) for name, found in read("engine").get("tables", {}).items() if found)]
    trl = [{**pair, "peer": "trl"} for pair in read("engine").get("pairs", []) if pair["peer"].startswith("trl")]
    parts += [
        PEERS,
        others(read("peers"), trl),
        GOALS,
        goals(),
        SEQUENCE,
        sequence(read("sequence")),
        ABLATION,
        ablation(read("ablation")),
    ]
    if wide := read("ablation_opt125m"):
        parts += ["\nThe same on `opt125m`, where the products are wider:\n", ablation(wide)]
    parts += [MEMORY, memory(read("memory")), INT8, int8(read("int8"))]
    parts += [DECODE, decode(read("decode")), TAIL]
    return "".join(parts)


def read(name: str) -> dict[str, Any]:
    """Results of one benchmark, empty where it was not run."""
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Markdown; says so where there is nothing."""
    if not rows:
        return "\nNot measured yet.\n"
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n" + "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def times(ratio: dict[str, Any]) -> str:
    """Median and range."""
    return f"{ratio['median']:.2f} ({ratio['range'][0]:.2f}–{ratio['range'][1]:.2f})"


def engine(name: str, found: dict[str, Any]) -> str:
    """Arms, then goals."""
    work = found["work"]
    rows = []
    for arm_name, arm in found["arms"].items():
        ratio = found["ratios"].get(f"luthier/{arm_name}")
        mfu = "–" if arm["mfu"] is None else f"{arm['mfu']:.2f}"
        numbers = (f"{arm['tokens_per_cpu_s']:.0f}", mfu, f"{arm['peak_rss_mb']:.0f}")
        numbers = (*numbers, f"{arm['positions_per_token']:.2f}")
        said = ("", "") if ratio is None else (told(ratio), counted(ratio))
        rows.append((f"`{arm_name}`", *numbers, f"{arm['loss']:.4f}", *said))
    heads = ("arm", "tokens / CPU-s", "MFU", "peak MB", "positions / token", "loss after", "luthier is × faster")
    reached = [(name, f"{one['goal']:.2f}", shown(one["measured"])) for name, one in found["goals"].items()]
    title = f"\n### {name}: {work['tokens']} tokens, {work['supervised']} trained\n"
    return title + table((*heads, "without padding"), rows) + table(("goal", "at least", "measured"), reached)


def told(ratio: dict[str, Any]) -> str:
    """Median and range; only the range where it holds 1 or was seen once."""
    if ratio["clear"]:
        return times(ratio)
    return f"no difference shown ({ratio['range'][0]:.2f}–{ratio['range'][1]:.2f})"


def counted(ratio: dict[str, Any]) -> str:
    """The ratio over a data set so large that no padding is left."""
    return f"{ratio['without_padding']:.2f}" if "without_padding" in ratio else ""


def others(found: dict[str, Any], trl: Sequence[dict[str, Any]] = ()) -> str:
    """One table a shape and number of rows, a line an arm; then what was dropped, and versions, those of `trl` too."""
    groups = found.get("groups", [])
    parts = []
    for shape, count in dict.fromkeys((one["shape"], one["work"]["count"]) for one in groups):
        here = [one for one in groups if (one["shape"], one["work"]["count"]) == (shape, count)]
        lines = [line for one in here for line in arms_of(one)]
        heads = ("arm", "tokens / CPU-s", "`luthier` beside it", "positions / token", "peak MB", "checked as",
                 "gradient off by", "loss after", "luthier is × faster")  # fmt: skip
        work = here[0]["work"]
        title = f"\n### {shape}, {count} rows: {work['tokens']} tokens, {here[0]['rounds']} epochs of every arm\n"
        parts += [title, table(heads, lines)]
        gone = [f"- `{drop['name']}` was dropped: {drop['why']}." for one in here for drop in one["dropped"]]
        parts += ["\n" + "\n".join(gone) + "\n"] if gone else []
    versions = dict(versions_of(one) for one in (*groups, *trl) if len(one["arms"]) > 1)
    parts += [table(("peer", "versions"), sorted(versions.items()))] if versions else [table((), [])]
    return "".join(parts)


def beside(shape: str, goal: str) -> list[float]:
    """The same ratio in the groups of the other peers: TRL at its best is the best that was seen of it."""
    groups = [one for one in read("peers").get("groups", []) if one["shape"] == shape]
    return [float(one["ratios"][goal]["median"]) for one in groups if goal in one["ratios"]]


def arms_of(group: dict[str, Any]) -> list[tuple[Any, ...]]:
    """A peer's arms, the fastest first."""
    own = next(arm for arm in group["arms"] if arm["name"] == "luthier")
    lines = []
    for arm in sorted(group["arms"], key=lambda arm: -float(arm["tokens_per_cpu_s"])):
        if arm is own:
            continue
        rates = (f"{arm['tokens_per_cpu_s']:.0f}", f"{own['tokens_per_cpu_s']:.0f}")
        positions = f"{arm['computed_positions'] / group['work']['tokens']:.2f}"
        check = (arm["check"].get("objective", "answers"), f"{arm['check']['gradient_error']:.0e}")
        ratio = told(group["ratios"][f"luthier/{arm['name']}"])
        lines.append((f"`{arm['name']}`", *rates, positions, f"{arm['peak_rss_mb']:.0f}", *check,
                      f"{arm['loss']:.4f}", ratio))  # fmt: skip
    return lines


def versions_of(group: dict[str, Any]) -> tuple[str, str]:
    """Of the libraries in a peer's environment."""
    found = next(arm for arm in group["arms"] if arm["name"] != "luthier").get("versions", {})
    return group["peer"], ", ".join(f"{name} {version}" for name, version in found.items())


def goals() -> str:
    """Every goal, measured or not."""
    lines: list[tuple[str, str, str]] = []
    for shape, wanted in ENGINE_GOALS.items():
        best = widest(shape)
        for what, (name, goal) in wanted.items():
            one = best.get("goals", {}).get(name)
            seen = [one["measured"]] if one and one["measured"] is not None else []
            seen += beside(shape, name)
            lines.append((f"{what}, {shape}", f"≥ {goal}", shown(min(seen, default=None))))
    small, wide = (read(name).get("techniques", {}) for name in ("ablation", "ablation_opt125m"))
    for what, (found, name, goal) in {
        "int8 frozen base over the exact one, opt125m": (wide, "int8 frozen base", 1.4),
        "frozen-trunk cache over all-layer training": (small, "frozen-trunk cache, over adapters in all layers", 2.5),
        "a shared instruction of 128 tokens": (small, "shared prefix of 128 tokens", 1.6),
    }.items():
        lines.append((what, f"≥ {goal}", times(found[name]["speed"]) if name in found else "not measured"))
    for shape in ("llama25m", "opt125m"):
        share = read("sequence").get("shapes", {}).get(shape, {}).get("share", {})
        said = "; ".join(f"{value:.2f} `{name}`" for name, value in share.items()) or "not measured"
        lines.append((f"peak memory of one 4096-token sequence, share of plain HF's, {shape}", "≤ 0.5", said))
    lines.append(("first step of `luthier run` over importing torch + loading the model", "≤ 1.3", startup()))
    answers = read("decode").get("arms", {}).get("transformers + PEFT, one by one")
    by_one = times(answers["times"]) if answers else "not measured"
    lines.append(("evaluation samples by generation over one by one", "≥ 5", by_one))
    lines.append(("on an H100, 1B to 8B, exact bfloat16: over Unsloth", "≥ 1.2", "not measured"))
    lines.append(("on an H100: over torchtune, and over TRL + FlashAttention", "≥ 1.5", "not measured"))
    lines.append(("on an H100: MFU", "≥ 0.55", "not measured"))
    return table(("goal", "wanted", "measured"), lines)


def startup() -> str:
    """Median and range of bench_startup.py."""
    found = read("startup").get("ratio")
    return times(found) if found else "not measured"


def widest(shape: str) -> dict[str, Any]:
    """Of the tables of one shape the one with most pairs; ratios of different rows are not mixed."""
    tables = [one for name, one in read("engine").get("tables", {}).items() if name.split(",")[0] == shape]
    return max(tables, key=lambda one: one["pairs"], default={})


def sequence(found: dict[str, Any]) -> str:
    """One line an arm."""
    rows = []
    for shape, one in found.get("shapes", {}).items():
        for name, arm in one["arms"].items():
            share = f"{one['share'][name]:.2f}" if name in one["share"] else ""
            rows.append((shape, f"`{name}`", arm["peak_mb"], arm["loaded_mb"], share, f"{arm['losses'][-1]:.5f}"))
    return table(("shape", "arm", "peak MB", "of it loaded", "share of plain", "second loss"), rows)


def shown(value: float | None) -> str:
    """A number, or that there is none."""
    return "not measured" if value is None else f"{value:.2f}"


def ablation(found: dict[str, Any]) -> str:
    """One line a technique."""
    rows = [
        (name, times(one["speed"]), " / ".join(map(str, one["peak_mb"])), " / ".join(f"{v:.5f}" for v in one["loss"]))
        for name, one in found.get("techniques", {}).items()
    ]
    return table(("technique", "× faster", "peak MB", "loss"), rows)


def memory(found: dict[str, Any]) -> str:
    """One line a setting."""
    rows = [
        (name, one["planned_mb"], one["peak_mb"], f"{one['planned_mb'] / one['peak_mb'] - 1:+.0%}",
         one["planned_s"], one["measured_s"])
        for name, one in found.get("settings", {}).items()
    ]  # fmt: skip
    return table(("setting", "planned MB", "peak MB", "error", "planned s", "measured s"), rows)


def decode(found: dict[str, Any]) -> str:
    """One line an arm."""
    total = found.get("answers", 0)
    rows = [
        (name, f"{one['tokens_per_cpu_s']:.0f}", f"{one['identical']} of {total}", times(one["times"]))
        for name, one in found.get("arms", {}).items()
    ]
    return table(("arm", "tokens / CPU-s", "answers as one by one", "luthier is × faster"), rows)


def int8(found: dict[str, Any]) -> str:
    """One line a pair, and the mean over the seeds of each base."""
    rows, means = [], []
    pairs = found.get("pairs", [])
    for pair in pairs:
        low, high = pair["int8_minus_exact"]["ci95"]
        losses = (f"{pair['base_loss']:.4f}", f"{pair['exact_loss']:.4f}")
        cost = f"{pair['int8_minus_exact']['value']:+.4f} ({low:+.4f} to {high:+.4f})"
        about = (pair["base"], pair["data"], pair["seed"], pair["steps"], f"{pair['cosine']:.4f}")
        rows.append((*about, *losses, cost))
    for base in dict.fromkeys(pair["base"] for pair in pairs):
        some = [pair for pair in pairs if pair["base"] == base]
        costs, exact = ([pair["int8_minus_exact"]["value"] for pair in some], [pair["exact_loss"] for pair in some])
        middle, reach = mean(costs), stats.t.ppf(0.975, len(some) - 1) * stdev(costs) / len(some) ** 0.5
        interval = f"{middle:+.4f} ({middle - reach:+.4f} to {middle + reach:+.4f})"
        means.append((base, len(some), interval, f"{stdev(exact):.4f}"))
    heads = ("base", "rows", "seed", "steps", "gradient's cosine", "loss of the base", "exact", "int8 − exact (95 %)")
    return table(heads, rows) + table(("base", "seeds", "mean of int8 − exact", "sd of exact between seeds"), means)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
