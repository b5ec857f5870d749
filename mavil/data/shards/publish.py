"""From finished shards in the staging folder to a set: its tables, its list of rejects, its index, and the move."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mavil.atomic_files import sha256_of, sync
from mavil.data.shards.clip_table import CLIPS, LABELS, ClipTable, write_table
from mavil.data.shards.index import INDEX, ShardIndex, read_index, write_index
from mavil.data.shards.screening import Verdict
from mavil.data.shards.writing import FinishedShard
from mavil.data.sources.listing import Listing, Reject, write_rejects

REJECTS = "rejects.csv"


def write_set(
    staging: Path,
    listing: Listing,
    shards: Sequence[FinishedShard],
    rejects: Sequence[Reject],
    verdicts: Sequence[Verdict],
) -> None:
    """Write what belongs to the shards beside them in the staging folder, the index last: now the set is complete."""
    labels = [labels for shard in shards for labels in shard.labels]
    counts = Counter(label for names in labels for label in names)
    classes = listing.classes or tuple(sorted(counts))
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [row for shard in shards for row in shard.rows]
    write_table(staging, ClipTable.of(rows, [[numbers[label] for label in names] for names in labels]))
    write_rejects(staging / REJECTS, rejects)
    for name in (CLIPS, LABELS, REJECTS):
        sync(staging / name)
    packed = {key for shard in shards for key in shard.keys}
    silence = [verdict.is_silent for verdict in verdicts if listing.clips[verdict.number].key in packed]
    index = ShardIndex(
        folder=staging,
        num_clips=len(rows),
        num_with_audio=sum(shard.num_with["audio"] for shard in shards),
        num_with_video=sum(shard.num_with["video"] for shard in shards),
        classes=classes,
        label_counts=dict(sorted(counts.items())),
        rejected=dict(sorted(Counter(reject.cause for reject in rejects).items())),
        shards=tuple(shard.info for shard in shards if shard.info),
        tables={name: sha256_of(staging / name) for name in (CLIPS, LABELS)},
        num_silent=None if None in silence else sum(map(bool, silence)),
    )
    write_index(index)


def publish(staging: Path, out: Path) -> ShardIndex:
    """Move a complete set into its folder; again after a kill in the middle of it.

    Without an index in between, so that a half-moved set is never taken for one.
    """
    index = read_index(staging, shards_are_here=False)
    (out / INDEX).unlink(missing_ok=True)
    names = [shard.name for shard in index.shards]
    for old in out.glob("[0-9]" * 6 + ".tar"):
        if old.name not in names:
            old.unlink()
    for name in [*names, *index.tables, REJECTS]:
        if (staging / name).exists():  # or it has been moved already
            os.replace(staging / name, out / name)
    sync(out)
    os.replace(staging / INDEX, out / INDEX)
    sync(out)
    return read_index(out)


def all_rejects(listing: Listing, verdicts: Sequence[Verdict], late: Mapping[str, Reject]) -> list[Reject]:
    """Those of the source, then the clips left out, in the order of the source; ``late`` ones by key."""
    rejects = list(listing.rejects)
    for clip, verdict in zip(listing.clips, verdicts, strict=True):
        if verdict.cause:
            rejects.append(Reject(clip.key, clip.path, verdict.cause, verdict.detail))
        elif clip.key in late:
            rejects.append(late[clip.key])
    return rejects
