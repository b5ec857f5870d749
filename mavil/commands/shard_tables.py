"""What ``mavil shards make`` prints: how many clips were listed, found and packed, and why others were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from mavil.data.shards.index import ShardIndex
from mavil.data.shards.selection import CAUSES
from mavil.data.sources.overlap import Overlap

NOT_FOUND = ("missing", "mangled_id", "empty_span", "damaged_tar", "damaged_record")
"""Causes of clips that a source lists but does not have."""


def show_counts(num_usable: int, rejected: Mapping[str, int], console: Console, verb: str = "packed") -> None:
    """Print the table of clips; the causes in the order in which they are found."""
    listed = num_usable + sum(rejected.values())
    table = Table("clips", "", "", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("listed", f"{listed:,}", "by the source")
    table.add_row("found", f"{listed - sum(rejected.get(cause, 0) for cause in NOT_FOUND):,}", "there is a file")
    table.add_row(verb, f"{num_usable:,}", "usable, in the shards" if verb == "packed" else "they would be packed")
    if rejected:
        table.add_section()
    order = list(CAUSES)
    for cause in sorted(rejected, key=lambda cause: order.index(cause) if cause in order else len(order)):
        table.add_row(cause, f"{rejected[cause]:,}", CAUSES.get(cause, ""))
    console.print(table)


def show_index(index: ShardIndex, console: Console) -> None:
    """Print what was packed and where."""
    size = sum(shard.bytes for shard in index.shards) / 1e6
    line = (
        f"{index.num_clips} clips ({index.num_with_audio} with sound, {index.num_with_video} with picture, "
        f"{len(index.label_counts)} labels) in {len(index.shards)} shards, {size:.1f} MB: {index.folder}"
    )
    console.print(line, highlight=False, soft_wrap=True)
    if index.num_silent:
        console.print(f"of these silent: {index.num_silent} (--reject-silent leaves them out)", highlight=False)


def show_overlaps(overlaps: Sequence[Overlap], num_clips: int, console: Console) -> None:
    """Print how many of the clips each list has too."""
    for overlap in overlaps:
        share = 100 * len(overlap.keys) / max(1, num_clips)
        console.print(
            f"{len(overlap.keys)} of {num_clips} clips ({share:.2f} %) are among the {overlap.num_ids} recordings of "
            f"{overlap.path}",
            highlight=False,
            soft_wrap=True,
        )
