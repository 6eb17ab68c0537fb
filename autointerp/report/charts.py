"""Distributions of per-latent scores as small inline SVG: real explanations above the axis, control below.

Colours come from the page's CSS classes, so the same picture serves light and dark. What tells the two
distributions apart is the side of the axis they stand on, not the colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup, escape

from autointerp.report.text import figure

WIDTH, HEIGHT = 400.0, 148.0
LEFT, RIGHT = 10.0, 390.0
AXIS, REACH = 66.0, 54.0
BINS = 48
MOST_DOTS = 9
CHANCE = {"balanced_accuracy": 0.5, "auroc": 0.5}
UNIT_INTERVAL = frozenset({"balanced_accuracy", "auroc", "accuracy", "precision", "recall", "f1"})


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - self.low) / (self.high - self.low)

    def bin(self, value: float) -> int:
        return min(BINS - 1, max(0, int(BINS * (value - self.low) / (self.high - self.low))))


def scale(metric: str, values: Sequence[float]) -> Scale:
    """0 to 1 for shares and AUROC, otherwise round numbers around the values and zero."""
    if metric.partition("@")[0] in UNIT_INTERVAL:
        return Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    low, high = min(0.0, *values), max(0.0, *values)
    if high == low:
        high = low + 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, tuple(n * step for n in range(first, last + 1)))


def distribution(name: str, metric: str, key: str, real: Sequence[float], control: Sequence[float]) -> Markup:
    """The figure's SVG. `key` is unique on the page; it ties the title and description to the picture."""
    axis = scale(metric, [*real, *control])
    heights = [_counts(axis, real), _counts(axis, control)]
    most = max(max(counts) for counts in heights)
    parts = [_frame(axis, metric)]
    for css, counts, up in (("real", heights[0], True), ("control", heights[1], False)):
        draw = _dots if most <= MOST_DOTS else _bars
        parts.append(Markup('<g class="{}">{}</g>').format(css, draw(counts, most, up)))
    for css, values, up in (("real", real, True), ("control", control, False)):
        if values:
            parts.append(_median(axis, median(values), css, up))
    return Markup(
        '<svg class="chart" viewBox="0 0 {w:.0f} {h:.0f}" role="img" aria-labelledby="{key}-t {key}-d">'
        '<title id="{key}-t">{title}</title><desc id="{key}-d">{desc}</desc>{body}</svg>'
    ).format(
        w=WIDTH, h=HEIGHT, key=key, title=f"Distribution of {name}", desc=_description(real, control),
        body=Markup("").join(parts),
    )  # fmt: skip


def _description(real: Sequence[float], control: Sequence[float]) -> str:
    said = [
        f"{who}: {len(values):,} latents, median {figure(median(values))}, from {figure(min(values))} "
        f"to {figure(max(values))}"
        for who, values in (("Real explanations", real), ("Control", control))
        if values
    ]
    return (". ".join(said) or "No values") + "."


def _counts(axis: Scale, values: Sequence[float]) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[axis.bin(value)] += 1
    return counts


def _frame(axis: Scale, metric: str) -> Markup:
    parts = [
        Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(LEFT, RIGHT, y=AXIS)
    ]
    if metric.partition("@")[0] in CHANCE:
        x = axis.x(CHANCE[metric.partition("@")[0]])
        parts.append(Markup('<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="126"/>').format(x=x))
    for at, tick in enumerate(axis.ticks):
        anchor = "start" if at == 0 else "end" if at == len(axis.ticks) - 1 else "middle"
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="142" text-anchor="{}">{}</text>').format(
                axis.x(tick), anchor, _tick(tick)
            )
        )
    return Markup("").join(parts)


def _tick(value: float) -> str:
    return f"{value:.4g}".replace("-", "\u2212")


def _dots(counts: Sequence[int], most: int, up: bool) -> Markup:
    """One dot per latent: for few latents a histogram's bars would pretend to a density."""
    pitch = (RIGHT - LEFT) / BINS
    radius = min(pitch / 2 - 0.6, REACH / max(most, 1) / 2)
    # A line of no length with round ends is a dot, and takes a third of a circle's bytes.
    path = []
    for at, n in enumerate(counts):
        x = LEFT + (at + 0.5) * pitch
        for level in range(n):
            away = 3 + radius + level * 2 * radius
            path.append(f"M{x:.1f} {AXIS - away if up else AXIS + away:.1f}h0")
    return Markup('<path class="dots" stroke-width="{:.1f}" d="{}"/>').format(radius * 1.8, "".join(path))


def _bars(counts: Sequence[int], most: int, up: bool) -> Markup:
    pitch = (RIGHT - LEFT) / BINS
    path = []
    for at, n in enumerate(counts):
        if n:
            height = max(REACH * n / most, 0.8)
            edge, far = (AXIS - 1, -height) if up else (AXIS + 1, height)
            path.append(f"M{LEFT + at * pitch + 0.6:.1f} {edge:.1f}v{far:.1f}h{pitch - 1.2:.1f}v{-far:.1f}z")
    return Markup('<path class="bars" d="{}"/>').format("".join(path))


def _median(axis: Scale, value: float, css: str, up: bool) -> Markup:
    x = axis.x(value)
    far = AXIS - REACH - 6 if up else AXIS + REACH + 6
    return Markup('<line class="median {}" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
        escape(css), AXIS, far, x=x
    )
