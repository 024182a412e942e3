"""An OpenAI-compatible server: the base and every run are model names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN…", help="Run directories or adapter folders; NAME=RUN names one.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model (default: that of the first run).")] = None,
    base_name: Annotated[str, typer.Option(help="Model name of the untouched base.")] = "base",
    host: Annotated[str, typer.Option(help="Any other address than this machine's own needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="One key a line.")] = None,
    adapters_dir: Annotated[
        list[Path] | None, typer.Option(help="Adapters below it may be loaded over POST /v1/adapters.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Answers that are made at once.")] = 16,
    inflight: Annotated[int, typer.Option(min=1, help="Answers being made or waiting; 429 above it.")] = 64,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that an answer may take; 504 after it.")] = 300.0,
    requests_per_minute: Annotated[int, typer.Option(min=0, help="For each key; 0: no limit.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads (default: physical cores).")] = None,
) -> None:
    """See the module."""
    from rich.text import Text

    from luthier.cli.console import err
    from luthier.core import libraries

    libraries.start()
    from luthier.serve.app import Limits, read_keys, serve
    from luthier.serve.start import named, open_base

    adapters = named(runs or [])
    keys = read_keys(api_key_file)
    limits = Limits(inflight=inflight, deadline_s=deadline, per_minute=requests_per_minute, keys=keys)
    loaded = open_base(base, adapters, threads)

    def said(kind: str, **fields: object) -> None:
        if fields["one_by_one"]:
            err().print(Text(f"answers are made one by one: {fields['one_by_one']}"))
        if loaded.kind == "encoder":
            err().print(Text("an encoder gives labels, not text: ask POST /v1/classify"))
        models = ", ".join(str(name) for name in fields["models"])  # type: ignore[attr-defined]
        err().print(Text(f"serving {models} on http://{fields['host']}:{fields['port']}/v1  (ctrl-C ends)"))

    serve(
        loaded,
        adapters,
        base_name=base_name,
        host=host,
        port=port,
        roots=tuple(adapters_dir or ()),
        slots=slots,
        limits=limits,
        emit=said,
    )
