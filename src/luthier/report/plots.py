"""The curves as a PNG: training and validation loss over optimizer steps, on one x axis.

Drawn with matplotlib's objects on the Agg canvas: no display, no global state, nothing that blocks.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

INK, TRAIN, VALIDATION, ZONE, BEST = "#2b2a27", "#8aa4b8", "#b4531f", "#f6d9c8", "#3c6e47"


def cjk_font() -> str | None:
    """The first installed font that has Chinese glyphs, or None."""
    from matplotlib import font_manager

    wanted = json.loads(files("luthier.report").joinpath("texts/cjk_fonts.json").read_text("utf-8"))
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in wanted if name in installed), None)


def draw(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], verdict: Mapping[str, Any], texts: Mapping[str, str]
) -> bytes:
    """PNG of the curves; `texts` are the labels (`curve.…`) in the language of the report."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fonts = [name for name in ("DejaVu Sans", cjk_font()) if name]
    with rc_context({"font.family": fonts, "axes.unicode_minus": False}):
        figure = Figure(figsize=(8.6, 4.4), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        _curves(figure.subplots(), curves, verdict, texts)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _curves(axes: Any, curves: Mapping[str, Any], verdict: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    frame(axes, texts["curve.x"], texts["curve.y"])
    train = [(point["step"], point["loss"]) for point in curves.get("train", ()) if "loss" in point]
    validation = [(point["step"], point["loss"]) for point in curves.get("validation", ()) if "loss" in point]
    if not train and not validation:
        axes.text(0.5, 0.5, texts["curve.empty"], ha="center", va="center", transform=axes.transAxes, color=INK)
        return
    if train:
        _train(axes, train, texts)
    if validation:
        _validation(axes, validation, verdict, texts)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    losses = [loss for _, loss in (*train, *validation)]
    axes.set_ylim(bottom=0 if min(losses) < 0.4 * max(losses) else None)


def frame(axes: Any, x: str, y: str) -> None:
    """The look of every picture: two spines, quiet lines, named axes."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(axis="y", color="#e7e3dc", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b9b4aa")


def _train(axes: Any, points: Sequence[tuple[int, float]], texts: Mapping[str, str]) -> None:
    steps = [step for step, _ in points]
    raw = [loss for _, loss in points]
    if len(points) < 20:
        axes.plot(steps, raw, color=TRAIN, linewidth=1.8, label=texts["curve.train"])
        return
    axes.plot(steps, raw, color=TRAIN, linewidth=0.9, alpha=0.4)
    axes.plot(steps, smooth(raw), color=TRAIN, linewidth=2, label=texts["curve.train_smooth"])


def _validation(
    axes: Any, points: Sequence[tuple[int, float]], verdict: Mapping[str, Any], texts: Mapping[str, str]
) -> None:
    steps = [step for step, _ in points]
    losses = [loss for _, loss in points]
    style: dict[str, Any] = {"color": VALIDATION, "linewidth": 1.8, "marker": "o", "markersize": 4.5}
    axes.plot(steps, losses, label=texts["curve.validation"], **style)
    best = min(range(len(losses)), key=losses.__getitem__)
    label = texts["curve.best"].format(step=steps[best], loss=f"{losses[best]:.3f}")
    ring: dict[str, Any] = {"color": BEST, "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 2}
    axes.plot([steps[best]], [losses[best]], "o", label=label, **ring)
    since = verdict.get("since")
    if verdict.get("verdict") in ("overfit", "memorising") and since is not None and steps[-1] > since:
        axes.axvspan(since, steps[-1], color=ZONE, alpha=0.6, zorder=0, label=texts["curve.zone"])


def smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average over a 25th of the curve: unlike an exponential one it does not lag behind."""
    reach = max(2, len(values) // 50)
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]
