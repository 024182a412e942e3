"""Everything but training: the data as the model will see it, what is trained, what it costs, what looks wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key.path=value", help="Settings.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only recipe and data, without the model.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    from luthier import pipeline
    from luthier.cli.console import json_out
    from luthier.recipe import Recipe

    parsed = Recipe.load(recipe, *(overrides or ()))
    found = pipeline.check(parsed, quick=quick)
    if json:
        json_out(found)
    else:
        _page(found, parsed.dump())
    return 0 if found["ok"] else 2


def _page(found: dict[str, Any], resolved: str) -> None:
    from rich.text import Text

    from luthier.cli.console import failure, out, safe, table, warning
    from luthier.core.errors import Problem
    from luthier.report import inspection, words
    from luthier.report.render import flat

    console = out()
    console.print(Text("recipe", style="bold"))
    console.print(safe(resolved))
    manifest = found.get("data", {})
    texts = words.table("en")
    lines = inspection.table(manifest)
    if lines:
        table(("data", *inspection.SPLITS), [(texts[f"data.{name}"], *values) for name, values in lines])
    else:
        table(("data", ""), flat(manifest.get("rows", {}), "rows"))
    table(("", ""), [(texts[f"data.{name}"], value) for name, value in inspection.facts(manifest)])
    if lengths := inspection.histogram(manifest):
        table(("tokens, up to", "rows", "", "so far"), lengths)
    for part in ("model", "plan"):
        values = {
            name: value for name, value in found.get(part, {}).items() if name not in ("by_weight", "fingerprint")
        }
        if values:
            table((part, ""), flat(values))
    if found.get("preview"):
        console.print(Text("\nrows as the model sees them", style="bold"))
        preview(str(found["preview"]))
    for item in found.get("warnings", ()):
        warning(item["what"], item.get("where", ""), item.get("remedy", ""))
    failure([Problem(item["what"], item.get("where", ""), item.get("remedy", "")) for item in found["problems"]])
    console.print(Text("ok", style="green") if found["ok"] else Text("this must be mended first", style="bold red"))


def preview(text: str) -> None:
    """The preview with the trained parts (between ⟦ and ⟧) in colour."""
    from rich.text import Text

    from luthier.cli.console import out, safe

    shown = Text()
    for place, part in enumerate(text.split("⟦")):
        trained, mark, rest = part.partition("⟧") if place else ("", "", part)
        if place:
            shown.append_text(safe(f"⟦{trained}{mark}", "green"))
        shown.append_text(safe(rest))  # each with its own style: `+` would spread the first one's over all
    out().print(shown)
