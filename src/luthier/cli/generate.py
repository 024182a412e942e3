"""One answer of a tuned model, or of its untouched base."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory or adapter folder.")],
    prompt: Annotated[str, typer.Option(help="What to ask; - reads it from stdin.")],
    base: Annotated[bool, typer.Option("--base", help="Ask the untouched base.")] = False,
    base_model: Annotated[str | None, typer.Option("--model", help="Base model of a foreign adapter.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    task: Annotated[str | None, typer.Option(help="Which task's prefix answers (multitask_prefix).")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    import sys

    from luthier.core import libraries

    libraries.start()
    from luthier.adapted import load
    from luthier.cli.console import json_out, out, safe

    text = sys.stdin.read() if prompt == "-" else prompt
    adapted = load(run, base=base_model)
    with adapted.off() if base else nullcontext():
        answer = adapted.generate(text, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, task=task)
    if json:
        json_out({"prompt": text, "text": answer, "model": "base" if base else "tuned"})
    else:
        out().print(safe(answer))
