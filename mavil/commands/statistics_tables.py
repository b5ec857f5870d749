"""What ``mavil shards stats`` prints: the numbers for training, what they were measured on, and the labels."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mavil.data.shards.index import ShardIndex
from mavil.data.shards.statistics import STATISTICS, LogMel

NUM_LABELS = 10
"""Commonest and rarest labels that are shown."""
NUM_NAMES = 20
"""Classes without a clip that are named."""


def show_statistics(index: ShardIndex, measured: LogMel, console: Console) -> None:
    """Print a measurement of the shards of ``index``."""
    title = f"log-mel values, {measured.spectrogram}, {measured.num_mel_bins} mel bins"
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in _sound_rows(index, measured).items():
        table.add_row(name, value)
    console.print(table)
    _show_labels(index, console)
    console.print(
        f"written to {index.folder / STATISTICS}: training finds this by itself (audio.mean, audio.std)",
        highlight=False,
        soft_wrap=True,
    )


def _sound_rows(index: ShardIndex, measured: LogMel) -> dict[str, str]:
    rows = {
        "mean": f"{measured.mean:.7f}",
        "deviation": f"{measured.std:.7f}",
        "clips measured": f"{measured.num_clips:,}",
        "clips of the set": f"{index.num_clips:,}, {index.num_with_audio:,} with sound, {index.num_with_video:,} with picture",
        "hours of sound": f"{measured.seconds / 3600:,.2f}",
        "sound per clip": f"{measured.shortest_seconds:.2f} to {measured.longest_seconds:.2f} s",
        "sample rates": ", ".join(f"{rate} Hz {count:,}" for rate, count in measured.sample_rates.items()),
    }
    if measured.num_silent:
        rows["silent, counted too"] = f"{measured.num_silent:,}"
    if measured.left_out:
        rows["left out"] = ", ".join(f"{cause} {count:,}" for cause, count in measured.left_out.items())
    if measured.drawn is not None:
        rows["drawn at random"] = f"{measured.drawn:,} clips, seed {measured.seed}"
    return rows


def _show_labels(index: ShardIndex, console: Console) -> None:
    counts = sorted(index.label_counts.items(), key=lambda item: (-item[1], item[0]))
    if not counts:
        console.print("no clip has a label")
        return
    table = Table("label", "clips", title=f"{len(counts)} labels", title_justify="left")
    for place, (label, count) in enumerate(counts):
        if place < NUM_LABELS or place >= len(counts) - NUM_LABELS:
            table.add_row(escape(label), f"{count:,}")
        elif place == NUM_LABELS:
            table.add_row("...", f"{len(counts) - 2 * NUM_LABELS:,} others")
    console.print(table)
    without = [name for name in index.classes if not index.label_counts.get(name)]
    if without:
        named = "; ".join(without[:NUM_NAMES]) + ("; ..." if len(without) > NUM_NAMES else "")
        console.print(f"{len(without)} classes without a clip: {named}", markup=False, highlight=False, soft_wrap=True)
