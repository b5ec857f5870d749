"""Some clips of a set of shards as a small set of its own, so that tests of a model need not read all of it."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mavil.atomic_files import sha256_of
from mavil.data.shards.clip_table import CLIPS, LABELS, ClipTable, write_table
from mavil.data.shards.index import ShardInfo, write_index
from mavil.data.stream.shard_set import ShardSet
from mavil.structs import UserError

_NAME = "000000.tar"


def spread_evenly(num_clips: int, num_wanted: int) -> list[int]:
    """At most so many clip numbers of a set, spread over all of it: neighbours in a shard may be of one class or length."""
    return np.unique(np.linspace(0, num_clips - 1, min(num_clips, num_wanted)).round().astype(int)).tolist()


def write_excerpt(shards: ShardSet, clips: Sequence[int], out: Path) -> int:
    """Write clips of ``shards``, by number, as one shard with its tables into the empty folder ``out``; returns how many.

    Members are copied as they are. Clips that cannot be read are left out.

    Raises:
        UserError: none can be read, or the place of the shards cannot be reached.
    """
    table, infos = shards.table(), shards.index.shards
    last = np.cumsum([info.num_clips for info in infos])
    rows, labels = [], []
    with (out / _NAME).open("wb") as file:
        for clip in clips:
            row = table.rows[clip].copy()
            size = int(max(row["media_at"] + row["media_bytes"], row["record_at"] + row["record_bytes"]))
            try:
                shard = infos[int(np.searchsorted(last, clip, side="right"))].name
                block = shards.storage.read(shard, int(row["offset"]), size)
            except OSError:
                continue
            if len(block) < size:
                continue
            row["offset"] = file.tell()
            file.write(block + bytes(-size % tarfile.BLOCKSIZE))
            rows.append(tuple(row.item()))
            labels.append(table.labels_of(clip).tolist())
        file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar
    if not rows:
        raise UserError(f"{shards.storage.location}: none of {len(clips)} clips can be read: run mavil shards check")
    write_table(out, ClipTable.of(rows, labels))
    info = ShardInfo(_NAME, len(rows), (out / _NAME).stat().st_size, sha256_of(out / _NAME))
    names = [shards.index.classes[number] for clip in labels for number in clip]
    write_index(
        replace(
            shards.index,
            folder=out,
            num_clips=len(rows),
            num_with_audio=min(len(rows), shards.index.num_with_audio),
            num_with_video=min(len(rows), shards.index.num_with_video),
            label_counts={name: names.count(name) for name in sorted(set(names))},
            rejected={},
            shards=(info,),
            tables={name: sha256_of(out / name) for name in (CLIPS, LABELS)},
            num_silent=None,
        )
    )
    return len(rows)
