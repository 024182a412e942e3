"""The first page: `luthier --help`."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from luthier.cli.console import out

GROUPS = {
    "tune": ("new", "check", "run", "resume", "sweep"),
    "prove": ("evaluate", "health", "verdict", "rows", "compare", "report", "bench"),
    "use": ("generate", "chat", "export", "serve", "studio", "context", "list", "doctor"),
}


def page(verbs: Mapping[str, str]) -> None:
    """All verbs with one line each."""
    console = out()
    console.print(Text("luthier VERB [RECIPE or RUN] [key.path=value …] [--json] [--debug]", style="bold"))
    console.print("Tunes language models, and proves what it did. `luthier VERB --help` tells more.\n")
    for group, members in GROUPS.items():
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for verb in members:
            if verb in verbs:
                table.add_row(Text(verb, style="cyan"), verbs[verb])
        console.print(Text(group, style="bold"))
        console.print(table)
    console.print("\nExit codes: 0 done, 1 failed gate, 2 bad recipe, data or model, 3 interrupted (resumable),")
    console.print("4 diverged, 5 out of a resource, 70 internal error.")
