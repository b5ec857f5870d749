"""Figures of single clips with axes: what a model filled in, how far it was off, and where it looked."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mavil.report.attention import AttentionMap, spread
from mavil.report.pictures import colour_range
from mavil.report.reconstruct import Reconstruction
from mavil.structs import TokenGrid

STEP_SECONDS = 0.01
"""From one spectrogram step to the next [every front end of the project]."""
DECIBELS = 10 / math.log(10)
"""Per unit of log-mel power, which is a natural logarithm."""
_TICKS_HZ = (100, 250, 500, 1000, 2000, 4000)
_SPECTROGRAM, _ERROR, _ATTENTION, _HIDDEN = "magma", "cividis", "viridis", "#767676"
_HEAD_COLUMNS = 4
_DPI = 90


@dataclass(frozen=True)
class Limits:
    """Colour limits that all clips of a page share, dB: equal colours mean equal levels everywhere."""

    level: tuple[float, float]
    error: float


def limits_of(clips: Sequence[Reconstruction]) -> Limits:
    """Limits from the 2nd and 99.8th percentile of all originals, and from the 99.8th of all errors where masked."""
    low, high = colour_range(torch.cat([clip.original.flatten() for clip in clips]))
    errors = torch.cat([error_of(clip)[clip.is_masked] for clip in clips]).numpy()
    worst = float(np.percentile(errors, 99.8)) if errors.size else 0.0
    return Limits((DECIBELS * low, DECIBELS * high), max(worst, 1.0))


def error_of(clip: Reconstruction) -> Tensor:
    """``[S, M]``: absolute difference of reconstruction and original, dB; 0 where the model saw the original."""
    return DECIBELS * (clip.completed - clip.original).abs()


def reconstruction_figure(title: str, clip: Reconstruction, centres_hz: Tensor, limits: Limits) -> bytes:
    """PNG: original, what the model saw, reconstruction, and the error where it saw nothing.

    The first three have one colour scale. ``centres_hz`` ``[M]`` are the mel bins' frequencies.
    """
    figure = Figure(figsize=(12, 6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    mask = clip.is_masked.numpy()
    pictures = {
        "original": (DECIBELS * clip.original).numpy(),
        "what the model saw": np.ma.array((DECIBELS * clip.original).numpy(), mask=mask),
        "reconstruction": (DECIBELS * clip.completed).numpy(),
        "absolute difference where masked": np.ma.array(error_of(clip).numpy(), mask=~mask),
    }
    drawn = []
    for (name, values), panel in zip(pictures.items(), panels.flat, strict=True):
        is_error = name == "absolute difference where masked"
        low, high = (0.0, limits.error) if is_error else limits.level
        drawn.append(_draw(panel, values, _ERROR if is_error else _SPECTROGRAM, low, high))
        panel.set_title(name, fontsize=10)
    _label(panels, len(clip.original), centres_hz)
    figure.colorbar(drawn[0], ax=panels[0, :], label="level, dB", pad=0.02, extend="both")
    figure.colorbar(drawn[3], ax=panels[1, :], label="difference, dB", pad=0.02, extend="max")
    figure.suptitle(title, fontsize=12)
    return _png(figure)


def attention_figure(
    title: str, log_mel: Tensor, maps: Sequence[AttentionMap], grid: TokenGrid, centres_hz: Tensor, limits: Limits
) -> bytes:
    """PNG: the spectrogram ``[S, M]`` with the query patches framed, and below it where each looks, mean over the heads.

    Attention is in multiples of what an even spread would give each patch; all maps have one colour scale.
    """
    figure = Figure(figsize=(12, 2.1 * (1 + len(maps)) + 0.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1 + len(maps), 1, sharex=True, sharey=True, squeeze=False)
    values = [_cut(one.mean * grid.num_tokens, grid, log_mel) for one in maps]
    level = _draw(panels[0, 0], (DECIBELS * log_mel).numpy(), _SPECTROGRAM, *limits.level)
    panels[0, 0].set_title("spectrogram, query patches framed", fontsize=10)
    highest = _highest(values)
    for one, picture, panel in zip(maps, values, panels[1:, 0], strict=True):
        shown = _draw(panel, picture, _ATTENTION, 0.0, highest)
        share = f"; CLS itself gets {100 * one.on_cls.mean():.0f} %" if one.on_cls.any() else ""
        panel.set_title(f"{one.query}: mean over {len(one.heads)} heads{share}", fontsize=10)
        for framed in (panels[0, 0], panel):
            _frame(framed, one.token, grid)
    _label(panels, len(log_mel), centres_hz)
    figure.colorbar(level, ax=panels[:1, 0], label="level, dB", pad=0.02, extend="both")
    figure.colorbar(shown, ax=panels[1:, 0], label="attention x patches", pad=0.02, extend="max")
    figure.suptitle(title, fontsize=12)
    return _png(figure)


def heads_figure(title: str, one: AttentionMap, grid: TokenGrid, num_steps: int, centres_hz: Tensor) -> bytes:
    """PNG: one query's map of every head, on one colour scale; ``num_steps`` are shown."""
    columns = min(_HEAD_COLUMNS, len(one.heads))
    rows = -(-len(one.heads) // columns)
    figure = Figure(figsize=(12, 1.7 * rows + 0.8), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    size = torch.empty(num_steps, len(centres_hz))
    values = [_cut(head * grid.num_tokens, grid, size) for head in one.heads]
    highest = _highest(values)
    for number, panel in enumerate(panels.flat):
        if number >= len(values):
            panel.set_axis_off()
            continue
        shown = _draw(panel, values[number], _ATTENTION, 0.0, highest)
        _frame(panel, one.token, grid)
        panel.set_title(f"head {number}", fontsize=9)
    _label(panels, num_steps, centres_hz)
    figure.colorbar(shown, ax=panels, label="attention x patches", pad=0.02, extend="max")
    figure.suptitle(f"{title}: {one.query}", fontsize=12)
    return _png(figure)


def _cut(values: Tensor, grid: TokenGrid, like: Tensor) -> np.ndarray:
    return spread(values, grid)[: len(like)].numpy()


def _highest(values: Sequence[np.ndarray]) -> float:
    """The end of a scale: single patches may get nearly everything, and would leave the rest dark."""
    return max(float(np.percentile(np.concatenate([one.ravel() for one in values]), 99.5)), 1e-6)


def _draw(panel: Axes, values: np.ndarray, colours: str, low: float, high: float) -> Any:
    """``[S, M]`` with time to the right in seconds and mel bins upwards; masked values are grey."""
    panel.set_facecolor(_HIDDEN)
    steps, bins = values.shape
    extent = (0.0, steps * STEP_SECONDS, 0.0, float(bins))
    return panel.imshow(
        values.T, cmap=colours, vmin=low, vmax=high, extent=extent, origin="lower", aspect="auto", interpolation="none"
    )


def _frame(panel: Axes, token: int | None, grid: TokenGrid) -> None:
    if token is None:
        return
    steps, bins = places_of(token, grid)
    corner, width = (steps.start * STEP_SECONDS, bins.start), len(steps) * STEP_SECONDS
    # Two lines, a dark one under a light one, are seen on any colour.
    for colour, line in (("black", 3.0), ("white", 1.2)):
        panel.add_patch(Rectangle(corner, width, len(bins), fill=False, edgecolor=colour, linewidth=line))


def places_of(token: int, grid: TokenGrid) -> tuple[range, range]:
    """Which spectrogram steps and mel bins an audio token stands for."""
    cell = np.unravel_index(token, grid.cells)
    strides = grid.stride or grid.patch
    ranges = [range(int(c) * s, int(c) * s + p) for c, s, p in zip(cell, strides, grid.patch, strict=True)]
    return (ranges[0], ranges[1]) if grid.time_axis == 0 else (ranges[1], ranges[0])


def _label(panels: np.ndarray, num_steps: int, centres_hz: Tensor) -> None:
    """Seconds below the lowest row, mel bins left of the first column, Hz right of the last."""
    bins = np.arange(len(centres_hz)) + 0.5
    places = {hz: np.interp(hz, centres_hz.numpy(), bins) for hz in _TICKS_HZ if centres_hz[0] < hz < centres_hz[-1]}
    for panel in panels[-1]:
        panel.set_xlabel("time, s")
        panel.set_xlim(0.0, num_steps * STEP_SECONDS)
    for row in panels:
        row[0].set_ylabel("mel bin")
        right = [panel for panel in row if panel.axison][-1].twinx()
        right.set_ylim(0.0, float(len(centres_hz)))
        right.set_yticks(list(places.values()), [f"{hz / 1000:g}k" if hz >= 1000 else str(hz) for hz in places])
        right.set_ylabel("Hz")
        right.tick_params(labelsize=8)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
