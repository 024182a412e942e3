"""A run with a longer window: what its section of the page shows, and the picture of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.report import plots
from luthier.report.collect import number

ARMS = ("base", "untuned", "tuned", "own_window_only")
"""The base as it is, the extended base before training, tuned, and the base that sees its own window only."""
COLOURS = {"base": "#8aa4b8", "untuned": "#77726a", "tuned": "#b4531f", "own_window_only": "#3c6e47"}
SHAPE = ("far", "even", "distance", "entropy", "sink", "prefix")


def losses(window: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"edges": ["0-256", …], "rows": [(arm, [loss …])]}"""
    found = {arm: values for arm in ARMS if isinstance(values := window.get(arm), Mapping) and values}
    edges = list(dict.fromkeys(str(edge) for values in found.values() for edge in values))
    if not edges:
        return None
    return {
        "edges": edges,
        "rows": [(arm, [number(values.get(edge)) for edge in edges]) for arm, values in found.items()],
    }


def tasks(window: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"arms", "rows": [(kind, floor, [(solved, loss) an arm])]}: passkeys over the grid first, then every kind."""
    grids, others = _part(window, "passkey"), _part(window, "tasks")
    arms = [arm for arm in ARMS if isinstance(grids.get(arm), Mapping)]
    if not arms:
        return None
    first = grids[arms[0]]
    rows = [
        (
            "passkey_grid",
            number(first.get("floor")),
            [(number(grids[a].get("mean")), number(grids[a].get("loss"))) for a in arms],
        )
    ]
    kinds = list(dict.fromkeys(str(kind) for arm in arms for kind in _part(others, arm)))
    for kind in kinds:
        cells = [_part(_part(others, arm), kind) for arm in arms]
        values = [(number(cell.get("solved")), number(cell.get("loss"))) for cell in cells]
        rows.append((kind, number(cells[0].get("floor")), values))
    return {"arms": arms, "rows": rows}


def attention(window: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"arms", "names", "rows": [(layer, [value of every name and arm])]}: means over heads, the last row of all."""
    found = _part(window, "attention")
    arms = [arm for arm in ("base", "untuned", "tuned") if _layers(found.get(arm))]
    arms = [arms[0], *arms[-1:]] if len(arms) > 2 else arms  # before and after: more columns do not fit a page
    if not arms:
        return None
    names = [name for name in SHAPE if any(_mean(one.get(name)) for arm in arms for one in _layers(found[arm]))]
    rows: list[tuple[Any, list[Any]]] = []
    for index, one in enumerate(_layers(found[arms[0]])):
        layers = [_layers(found[arm]) for arm in arms]
        cells = [_mean(part[index].get(name)) if index < len(part) else None for name in names for part in layers]
        rows.append((one.get("layer"), cells))
    whole = [number(_part(found[arm], "mean").get(name)) for name in names for arm in arms]
    return {"arms": arms, "names": names, "rows": [*rows, (None, whole)]}


def _part(value: Any, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _layers(found: Any) -> list[Mapping[str, Any]]:
    listed = found.get("layers") if isinstance(found, Mapping) else None
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def _mean(values: Any) -> float | None:
    known = [value for item in values if (value := number(item)) is not None] if isinstance(values, list) else []
    return sum(known) / len(known) if known else None


def draw(window: Mapping[str, Any], texts: Mapping[str, str]) -> bytes | None:
    """PNG: loss by position, and one heatmap of passkeys an arm (length × depth). None where nothing was measured."""
    table = losses(window)
    if table is None:
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grids = [(arm, grid) for arm in ARMS if (grid := _grid(_part(window, "passkey").get(arm))) is not None]
    fonts = [name for name in ("DejaVu Sans", plots.cjk_font()) if name]
    with rc_context({"font.family": fonts, "axes.unicode_minus": False}):
        figure = Figure(figsize=(8.6, 6.4 if grids else 3.6), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1, height_ratios=[3, 2.4]) if grids else [figure]
        _by_position(parts[0].subplots(), table, texts)
        if grids:
            axes = parts[1].subplots(1, len(grids), squeeze=False)[0]
            shown = [_heat(part, arm, grid, texts) for part, (arm, grid) in zip(axes, grids, strict=True)]
            parts[1].colorbar(shown[-1], ax=list(axes), label=texts["longer.answer_loss"], shrink=0.9)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _by_position(axes: Any, table: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    plots.frame(axes, texts["longer.position"], texts["curve.y"])
    places = list(range(len(table["edges"])))
    for arm, values in table["rows"]:
        known = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        style: dict[str, Any] = {"color": COLOURS[arm], "linewidth": 2.4 if arm == "tuned" else 1.6}
        style |= {"marker": "o", "markersize": 5, "linestyle": ":" if arm == "own_window_only" else "-"}
        axes.plot([place for place, _ in known], [value for _, value in known], label=texts[f"longer.{arm}"], **style)
    axes.set_xticks(places, [edge.replace("-", " – ") for edge in table["edges"]])
    axes.legend(frameon=False, fontsize=9, labelcolor=plots.INK)


def _grid(found: Any) -> tuple[list[Any], list[Any], list[list[float]], list[list[float]]] | None:
    """(lengths, depths, shares, losses), None where they are not tables of the same shape."""
    if not isinstance(found, Mapping):
        return None
    lengths, depths = found.get("lengths"), found.get("depths")
    if not isinstance(lengths, list) or not isinstance(depths, list):
        return None
    tables = []
    for name in ("shares", "losses"):
        rows = found.get(name)
        if not isinstance(rows, list) or len(rows) != len(lengths) or not rows:
            return None
        if any(not isinstance(row, list) or len(row) != len(depths) or None in map(number, row) for row in rows):
            return None
        tables.append([[float(value) for value in row] for row in rows])
    return lengths, depths, tables[0], tables[1]


def _heat(axes: Any, arm: str, grid: Sequence[Any], texts: Mapping[str, str]) -> Any:
    lengths, depths, shares, nats = grid
    shown = axes.imshow(nats, cmap="YlOrBr", vmin=0, vmax=8, aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            dark = nats[y][x] > 5
            axes.text(
                x, y, f"{100 * share:.0f}%", ha="center", va="center", fontsize=8, color="white" if dark else plots.INK
            )
    axes.set_xticks(range(len(depths)), [str(depth) for depth in depths], fontsize=8)
    axes.set_yticks(range(len(lengths)), [str(length) for length in lengths], fontsize=8)
    axes.set_xlabel(texts["longer.depth"], fontsize=9, color=plots.INK)
    axes.set_ylabel(texts["data.tokens"], fontsize=9, color=plots.INK)
    axes.set_title(f"{texts['longer.passkey_grid']}: {texts[f'longer.{arm}']}", fontsize=9, color=plots.INK)
    return shown
