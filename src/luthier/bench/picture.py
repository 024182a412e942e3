"""The speeds as a PNG: a bar an arm, tokens a CPU-second (a second on a GPU), with the range over the rounds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from luthier.report.plots import INK, TRAIN, VALIDATION, frame


def draw(found: Mapping[str, Any]) -> bytes:
    """PNG of what `control.bench` returns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = bars_of(found)
    figure = Figure(figsize=(8.6, 1.2 + 0.42 * len(bars)), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    work = found["work"]
    frame(axes, "tokens a CPU-second" if found["clock"] == "cpu_s" else "tokens a second", "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e7e3dc", linewidth=0.8)
    names = [bar["name"] for bar in bars]
    colours = [VALIDATION if name == "luthier" else TRAIN for name in names]
    ranges = [[bar["rate"] - bar["low"] for bar in bars], [bar["high"] - bar["rate"] for bar in bars]]
    axes.barh(names, [bar["rate"] for bar in bars], xerr=ranges, color=colours, ecolor=INK, capsize=3, height=0.62)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    title = f"{work['shape']}, {work['count']} rows, {found['rounds']} rounds (bar: median, line: range)"
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def bars_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"name", "rate", "low", "high"} of every arm, the fastest first, from the raw seconds of its rounds."""
    tokens = found["work"]["tokens"]
    bars = []
    for arm in found["arms"]:
        rates = sorted(tokens / seconds for seconds in arm[found["clock"]])
        middle = len(rates) // 2
        median = rates[middle] if len(rates) % 2 else (rates[middle - 1] + rates[middle]) / 2
        bars.append({"name": arm["name"], "rate": median, "low": rates[0], "high": rates[-1]})
    return sorted(bars, key=lambda bar: -bar["rate"])
