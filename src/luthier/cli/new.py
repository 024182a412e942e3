"""Write a commented starter recipe."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    file: Annotated[Path, typer.Argument(help="Recipe file to write.")],
    task: Annotated[str, typer.Option(help="`luthier list tasks`")] = "instruct",
    method: Annotated[str, typer.Option(help="`luthier list methods`")] = "lora",
    model: Annotated[str, typer.Option(help="builtin, a local folder, or a hub id")] = "builtin",
    data: Annotated[str, typer.Option(help="File, folder, hub data set, or builtin")] = "builtin",
) -> None:
    """See the module."""
    from luthier.cli.console import out, safe
    from luthier.core import atomic
    from luthier.core.errors import RecipeError
    from luthier.recipe import Recipe

    if file.exists():
        raise RecipeError(f"{file} exists already", where=str(file), remedy="name a new file, or edit this one")
    text = starter(task, method, model, data)
    Recipe.parse(text)
    atomic.write_text(file, text)
    out().print(safe(f"wrote {file}; next: luthier check {file}"))


def starter(task: str, method: str, model: str, data: str) -> str:
    """The text: the keys that most people set, everything else as a comment."""
    from luthier.methods import METHODS
    from luthier.tasks import TASKS as FAMILY

    member = METHODS.get(method)
    FAMILY.get(task)
    source = "builtin:classify" if task == "classify" and data == "builtin" else data
    settings = "\n".join(_setting(name, info) for name, info in member.Params.model_fields.items())
    return f"""\
# A recipe of luthier. `luthier check` shows what it would do, `luthier run` does it.
# Any setting can also be given on the command line: luthier run {{this file}} train.epochs=1

model:
{_line(f"  path: {_text(model)}", "builtin | a local folder | a hub id")}
  # dtype: auto                   # auto | float32 | bfloat16 | float16
  # device: auto                  # auto | cpu | cuda

{_line(f"task: {task}", FAMILY.summaries()[task])}

data:
{_line(f"  train: {_text(source)}", "json, jsonl, csv, tsv, parquet, txt, a folder, a hub data set, builtin")}
  # format: auto                  # `luthier list formats`
  # columns: {{instruction: query}} # rename columns, wanted name first
  # template: auto                # `luthier list templates`
  max_length: 512                 # in tokens
  split: {{validation: 0.1, test: 0.1, seed: 42}}

# augment:                        # of the training rows only; `luthier list augmenters`
#   - {{name: synonyms, share: 0.3}}

method:
{_line(f"  name: {method}", METHODS.summaries()[method])}
{settings}

train:
  epochs: 3                       # or steps:
  # batch_tokens: 4096            # or batch_size: and accumulate:
  lr: auto                        # the method's own default; or a number
  # schedule: {{name: cosine, warmup: 0.1}}   # else the method's own
  # weight_decay: 0.01
  # save_every: epoch             # or a number of steps
  # evaluate_every: epoch         # or a number of steps
  early_stop: {{metric: loss, patience: 3, min_delta: 0.001}}

evaluate:
  samples: {{count: 5, max_new_tokens: 200}}

report: {{language: en}}            # en | zh
seed: 42
"""


def _setting(name: str, info: Any) -> str:
    """One setting of the method as a comment: its default and its help."""
    default: Any = None if info.is_required() else info.get_default(call_default_factory=True)
    if hasattr(default, "model_dump"):
        default = default.model_dump()
    if isinstance(default, set | frozenset | tuple):
        default = list(default)
    shown = f"  # {name}: {jsonlib.dumps(default, default=str)}"
    return _line(shown, " ".join((info.description or "").split()))


def _line(setting: str, comment: str) -> str:
    """A setting and its comment, aligned with the others."""
    return f"{setting:<33} # {comment}" if comment else setting


def _text(value: str) -> str:
    """A YAML scalar: quoted unless it is plain."""
    import re

    return (
        value if re.fullmatch(r"[A-Za-z0-9_./:-]*[A-Za-z0-9_./-]", value) else jsonlib.dumps(value, ensure_ascii=False)
    )
