"""Training curves: metrics over steps, drawn as inline SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 280, 175
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34
_MAX_POINTS = 240
"""More steps than this are averaged in groups: a line cannot show them."""
_COLOURS = 6
"""Line colours of the stylesheet; a seventh name would start again at the first."""


@dataclass(frozen=True)
class Line:
    """One line of a chart: ``values`` over ``steps``, equally many; ``name`` is the legend (a stage, a run)."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """One small chart: ``title`` says what is drawn, ``y_label`` in which unit."""

    title: str
    lines: Sequence[Line]
    y_label: str
    x_label: str = "optimizer step"


@dataclass(frozen=True)
class Charts:
    """A grid of small charts, a block of a section. Lines of one name have one colour in all of them."""

    charts: Sequence[Chart]
    note: str = ""

    def html(self) -> str:
        """The block as HTML."""
        names = list(dict.fromkeys(line.name for chart in self.charts for line in chart.lines))
        colours = {name: f"line{i % _COLOURS}" for i, name in enumerate(names)}
        figures = "".join(_figure(chart, colours) for chart in self.charts)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return f'<div class="charts">{figures}</div>{note}'


def loss_charts(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Chart]:
    """One chart per loss term (metric ``loss/<term>``), one line per run that has it.

    ``runs`` maps the legend (``stage 1``) to the lines of that run's metrics: numbers by name, ``step`` among them.
    """
    metrics = dict.fromkeys(name for entries in runs.values() for entry in entries for name in entry)
    terms = [name.removeprefix("loss/") for name in metrics if name.startswith("loss/")]
    return [metric_chart(runs, f"loss/{term}", term.replace("_", " "), "loss, unweighted") for term in terms]


def metric_chart(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    metric: str,
    title: str,
    y_label: str,
    x_label: str = "optimizer step",
) -> Chart:
    """One metric over steps, one line per run that has it; values that are not finite are left out.

    Raises:
        ValueError: no run has the metric.
    """
    lines = []
    for run, entries in runs.items():
        points = [(entry["step"], entry[metric]) for entry in entries if math.isfinite(entry.get(metric, math.nan))]
        if points:
            lines.append(Line(run, [step for step, _ in points], [value for _, value in points]))
    if not lines:
        raise ValueError(f"none of the runs {', '.join(runs) or '(none)'} has a finite value of {metric!r}")
    return Chart(title, lines, y_label, x_label)


def _figure(chart: Chart, colours: Mapping[str, str]) -> str:
    changes = {line.name: f"{_number(line.values[0])} → {_number(line.values[-1])}" for line in chart.lines}
    words = "; ".join(f"{name}: {change}" for name, change in changes.items())
    legend = "".join(
        f'<span class="key {colours[name]}">{escape(name)} <b>{change}</b></span>' for name, change in changes.items()
    )
    label = escape(f"{chart.title} over {chart.x_label}: {words}")
    return (
        f'<figure class="chart"><figcaption>{escape(chart.title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{_drawing(chart, colours)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def _drawing(chart: Chart, colours: Mapping[str, str]) -> str:
    steps = [step for line in chart.lines for step in line.steps]
    values = [value for line in chart.lines for value in line.values]
    x_ticks, y_ticks = _ticks(min(0, *steps), max(steps), 4), _ticks(min(values), max(values), 4)
    x_low, x_high = x_ticks[0], max(steps)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x(step: float) -> float:
        return _LEFT + (step - x_low) / max(x_high - x_low, 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{right}"/>'
        f'<text x="{_LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>'
        for tick in y_ticks
    ]
    parts += [
        f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{_number(tick)}</text>'
        for tick in x_ticks
        if tick <= x_high
    ]
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(10 {middle}) rotate(-90)" text-anchor="middle">{escape(chart.y_label)}</text>'
    )
    for line in chart.lines:
        colour = colours[line.name]
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _thinned(line))
        end = f'cx="{x(line.steps[-1]):.1f}" cy="{y(line.values[-1]):.1f}"'
        parts.append(f'<polyline class="{colour}" points="{points}"/><circle class="{colour}" {end} r="2.5"/>')
    return "".join(parts)


def _thinned(line: Line) -> list[tuple[float, float]]:
    size = -(-len(line.steps) // _MAX_POINTS)
    groups = range(0, len(line.steps), size)
    return [(_mean(line.steps[i : i + size]), _mean(line.values[i : i + size])) for i in groups]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about ``count`` intervals of them, from at most ``low`` to at least ``high``."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
