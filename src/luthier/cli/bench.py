"""How fast is the engine against its peers on the same rows? Interleaved, whole epochs, each in its own process."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Arms; the usual ones when none is named.")] = None,
    shape: Annotated[str, typer.Option(help="Model made from a config: llama25m, opt125m or tiny.")] = "llama25m",
    rows: Annotated[int, typer.Option(min=2, help="Rows of an epoch.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Epochs of every arm.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of an arm.")] = 1,
    trl: Annotated[str | None, typer.Option(help="Interpreter of an environment that has TRL.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    from luthier.bench import control
    from luthier.cli.console import err, json_out, safe

    found = control.bench(
        names or (),
        shape=shape,
        rows=rows,
        rounds=rounds,
        threads=threads,
        trl=trl,
        say=lambda words: err().print(safe(words, "dim")),
    )
    if json:
        json_out(found)
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    from luthier.cli.console import out, safe, table

    cells = []
    for arm in found["arms"]:
        ratio = found["ratios"].get(f"luthier/{arm['name']}")
        times = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['range'][0]:.2f}–{ratio['range'][1]:.2f})"
        rates = (f"{arm['tokens_per_cpu_s']:.0f}", f"{arm['tokens_per_s']:.0f}", f"{arm['mfu']:.2f}")
        cells.append((arm["name"], *rates, f"{arm['peak_rss_mb']:.0f}", f"{arm['loss']:.4f}", times))
    heads = ("arm", "tokens / CPU-s", "tokens / s", "MFU", "peak MB", "loss after", "luthier is × faster")
    work = found["work"]
    table(heads, cells, f"{work['shape']}: {work['count']} rows, {work['tokens']} tokens an epoch")
    peak = f"a float32 product makes {found['gemm_gflops']} GFLOP a CPU-second here"
    out().print(safe(f"{peak}; loss before: {work['loss_before']:.4f}"))
