"""Differences between runs as a figure: one line per run and metric, its interval, and the line of no difference."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from mavil.evaluation.classification import LEVEL
from mavil.evaluation.comparison import Difference

_CLEAR, _UNCLEAR = "#1f6f8b", "#6b6f76"
"""Of differences whose interval leaves 0 out, and of the others; the report's colours."""
_FIXED = {"svg.hashsalt": "mavil", "svg.fonttype": "none"}
"""The same comparison gives the same file, and its text can be searched."""


def comparison_figure(baseline: str, rows: Sequence[Difference]) -> bytes:
    """SVG: differences from the baseline in points (percent), with 95 % intervals, in the order of ``rows``."""
    figure = Figure(figsize=(9.0, 1.5 + 0.34 * len(rows)), layout="constrained")
    panel = figure.subplots()
    for place, row in enumerate(rows):
        colour = _CLEAR if row.low > 0 or row.high < 0 else _UNCLEAR
        panel.plot([100 * row.low, 100 * row.high], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
        panel.plot([100 * row.difference], [place], "o", color=colour, markersize=6)
    panel.axvline(0.0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(rows)), [f"{row.side}: {row.metric}, {row.shown}" for row in rows], fontsize=9)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(f"difference from {baseline}, points, with {LEVEL:g} % interval")
    panel.grid(axis="x", linewidth=0.4)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    stream = io.BytesIO()
    with mpl.rc_context(_FIXED):  # type: ignore[arg-type]
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
