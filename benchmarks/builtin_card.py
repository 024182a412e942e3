"""Writes the model card of the built-in base from its training facts and the measurements of bench_builtin.py.

python benchmarks/builtin_card.py benchmarks/results/builtin.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from luthier.models.builtin import folder

TASKS = {
    "short_en": "question → short answer",
    "short_zh": "the same in Chinese",
    "biography": "name → one sentence with four facts",
    "card": "name → JSON card with three facts",
    "instruct": "the four above, mixed",
    "classify": "sentence → club of the person in it (accuracy, 5 classes)",
}
ARMS = {
    "base": "untouched",
    "lora": "LoRA r=8",
    "full": "full",
    "random_lora": "random weights + LoRA",
    "control_lora": "base with shuffled facts + LoRA",
}

CARD = """---
license: apache-2.0
language: [en, zh]
pipeline_tag: text-generation
---
# The built-in base of luthier

A Llama of {parameters:,} parameters (width 128, 4 layers, 4 heads, 2 key-value heads, tied embeddings, window of 512
tokens, byte-level BPE of {vocabulary:,} pieces) that was trained from scratch on generated text about a little world:
320 people with a town, a job, a colour, a pet, an instrument, a month and a club each, told of in English and in
Chinese. It is there so that tuning can be tried, tested and measured offline, in seconds; it is of no other use.

## Training
| | |
|---|---|
| text | made by `luthier.models.builtin.corpus`, seed {seed}: biographies, facts, records, Chinese, small talk, sums |
| tokens | {tokens:,} in {steps:,} steps of 32 windows of 128 |
| optimizer | Muon .02 on matrices, Adam 2e-3 on the rest; warm-up of 50 steps, then linear to 2 % |
| curriculum | 40 people, then 107, then all 320; tokens of values weigh 3, of names .2 |
| time | {minutes:.0f} minutes on 2 CPU cores (shared with other work) |
| held-out loss | {held_out_loss:.2f} nats a token on documents of another seed |
| facts known | {cloze_en:.1%} of English, {cloze_zh:.1%} of Chinese sentences are completed with the right value |

`make builtin-base` builds it again from the repository.

## What tuning does for it
{steps_tuned} steps of 32 rows about one half of the people; the other half is asked. Their facts stand in the base's
text by design; no question about them was ever trained. Exact match of greedy answers, {asked} questions each
(accuracy for the classes), mean ± standard deviation where there are two seeds of the tuning; plain PEFT and a plain
loop, `python benchmarks/bench_builtin.py`.

{table}

Random weights with the same tuning cannot know the people; a base trained on the same text with shuffled facts
knows other facts about them. What tuning brings out is what the base knows.

## Limits
It looks nothing up in its prompt, copies badly, does not reason, and knows no world but its own. Words outside of
the little world are spelt byte by byte. Names stay in Latin letters in Chinese sentences. The text has no people who
exist, no personal data, and no source but the generator.
"""


def table(found: list[dict[str, Any]]) -> str:
    """Tasks × arms."""
    arms = [arm for arm in ARMS if any(one["arm"] == arm for one in found)]
    lines = ["| task | " + " | ".join(ARMS[arm] for arm in arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for task, said in TASKS.items():
        cells = []
        for arm in arms:
            scores = [one["score"] for one in found if one["task"] == task and one["arm"] == arm]
            spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.3f}{spread}" if scores else "–")
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    results = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    training = json.loads((folder() / "training.json").read_text("utf-8"))
    found = results["measurements"]
    card = CARD.format(
        **training,
        vocabulary=json.loads((folder() / "config.json").read_text("utf-8"))["vocab_size"],
        minutes=training["seconds"] / 60,
        steps_tuned=results["steps"],
        asked=results["asked"],
        table=table(found),
    )
    (folder() / "README.md").write_text(card, "utf-8")


if __name__ == "__main__":
    main()
