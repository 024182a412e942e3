"""How fast is the engine against its peers on the same rows? Interleaved, whole epochs, each in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SHAPES = "Model made from a config: llama25m, opt125m, tiny; for a GPU llama1b, llama3b, llama8b."
PYTHON = (
    "PEER=PATH: interpreter of an environment that has this peer (trl, llamafactory, swift, torchtune, litgpt, "
    "axolotl, unsloth, transformers); repeatable."
)
DTYPE = "Of the base: float32 or bfloat16; auto is float32 on a CPU, bfloat16 on a GPU."


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Arms; the usual ones when none is named.")] = None,
    shape: Annotated[str, typer.Option(help=SHAPES)] = "llama25m",
    rows: Annotated[int, typer.Option(min=2, help="Rows of an epoch.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Epochs of every arm, after one that is not counted.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of an arm.")] = 1,
    data: Annotated[str | None, typer.Option(help="Your rows instead of generated ones, any readable format.")] = None,
    prefix: Annotated[int, typer.Option(min=0, help="Tokens that all generated rows begin with.")] = 0,
    python: Annotated[list[str] | None, typer.Option(help=PYTHON)] = None,
    trl: Annotated[str | None, typer.Option(help="The same as --python trl=PATH.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "auto",
    plot: Annotated[Path | None, typer.Option(help="Bars of every arm's speed, as a PNG file.")] = None,
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
        pythons=python or (),
        data=data,
        prefix=prefix,
        device=device,
        dtype=dtype,
        say=lambda words: err().print(safe(words, "dim")),
    )
    if plot is not None:
        from luthier.bench.picture import draw
        from luthier.core import atomic

        atomic.write_bytes(plot, draw(found))
    if json:
        json_out(found)
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    from luthier.bench.figures import told
    from luthier.cli.console import out, safe, table, warning

    cells = []
    for arm in found["arms"]:
        ratio = found["ratios"].get(f"luthier/{arm['name']}")
        mfu = "–" if arm["mfu"] is None else f"{arm['mfu']:.2f}"
        rates = (f"{arm['tokens_per_cpu_s']:.0f}", f"{arm['tokens_per_s']:.0f}", mfu)
        memory = f"{arm.get('peak_cuda_mb', arm['peak_rss_mb']):.0f}"
        cells.append((arm["name"], *rates, memory, f"{arm['loss']:.4f}", "" if ratio is None else told(ratio)))
    heads = ("arm", "tokens / CPU-s", "tokens / s", "MFU", "peak MB", "loss after", "luthier is")
    work = found["work"]
    table(heads, cells, f"{work['shape']}: {work['count']} rows, {work['tokens']} tokens an epoch")
    for one in found["dropped"]:
        warning(f"{one['name']} was dropped: {one['why']}", "bench")
    product = f"a {work['dtype']} product makes {found['gemm_gflops']} GFLOP a"
    clock = f"{product} {'CPU-second' if found['clock'] == 'cpu_s' else 'second'} here"
    out().print(safe(f"{clock}; loss before: {work['loss_before']:.4f}"))
