"""How long a loader takes from the name of a large set of shards to its first batch. The set is made up: one real shard under
thousands of names.
"""

from __future__ import annotations

import io
import os
import shutil
import time
import wave
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from mavil.data.loading.loader import Loader, build_loader
from mavil.data.loading.samples import ClipDecoder
from mavil.data.shards.clip_table import ROW, ClipTable, write_table
from mavil.data.shards.index import ShardIndex, ShardInfo, write_index
from mavil.data.shards.tars import survey_shard, write_shard
from mavil.data.stream.shard_set import open_shards
from mavil.data.stream.weights import Draws
from mavil.structs import SAMPLE_RATE

NUM_CLASSES = 527
"""As AudioSet has."""
_SECONDS = 0.1
_DRAWS = 200_000
Answer = TypeVar("Answer")


def write_large_set(folder: Path, num_shards: int, clips_per_shard: int) -> None:
    """An index and a table of so many shards, all of them the same file under other names, with a label per clip."""
    first = folder / f"{0:06d}.tar"
    record = {
        "labels": ["class000"],
        "metadata": {},
        "duration_seconds": _SECONDS,
        "has_audio": True,
        "has_video": False,
    }
    clips = [(f"clip{i:06d}", "wav", _sound(), {"key": f"clip{i:06d}", **record}) for i in range(clips_per_shard)]
    write_shard(first, clips)
    rows = np.array([(*place, 1.0) for _, place in survey_shard(first)], dtype=ROW)
    infos = tuple(ShardInfo(f"{i:06d}.tar", clips_per_shard, first.stat().st_size, "") for i in range(num_shards))
    for info in infos[1:]:
        _same_file(first, folder / info.name)
    num_clips = num_shards * clips_per_shard
    labels = np.arange(num_clips, dtype="<i4") % NUM_CLASSES
    write_table(folder, ClipTable(np.tile(rows, num_shards), np.arange(num_clips + 1, dtype="<i8"), labels))
    classes = tuple(f"class{i:03d}" for i in range(NUM_CLASSES))
    counts = dict(zip(classes, np.bincount(labels, minlength=NUM_CLASSES).tolist(), strict=True))
    write_index(ShardIndex(folder, num_clips, num_clips, 0, classes, counts, {}, infos, {}))


def measure_start_up(folder: Path, num_rounds: int) -> dict[str, float]:
    """Median seconds, without the import of torch: to open the set, and from its name to the first batch, by kind of order."""
    seconds: dict[str, list[float]] = {}
    for _ in range(num_rounds):
        _timed(seconds, "open_shards", lambda: open_shards(folder))
        for kind, draws in (("every clip once", None), ("weighted draws", Draws("classes", _DRAWS))):

            def first_batch(draws: Draws | None = draws) -> object:
                return next(iter(_loader(folder, draws, training=True)))

            _timed(seconds, f"build_loader to first batch, {kind}", first_batch)
        _timed(seconds, "build_loader to first batch, evaluation", lambda: next(iter(_loader(folder, None, False))))
    return {what: median(values) for what, values in seconds.items()}


def _loader(folder: Path, draws: Draws | None, training: bool) -> Loader:
    return build_loader(
        folder,
        ClipDecoder(_SECONDS, None, seed=0, training=training),
        batch_size=16,
        num_workers=0,
        draws=draws,
    )


def _timed(seconds: dict[str, list[float]], what: str, work: Callable[[], Answer]) -> Answer:
    begin = time.perf_counter()
    answer = work()
    seconds.setdefault(what, []).append(time.perf_counter() - begin)
    return answer


def _sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(bytes(2 * round(_SECONDS * SAMPLE_RATE)))
    return file.getvalue()


def _same_file(original: Path, name: Path) -> None:
    try:
        os.link(original, name)
    except OSError:  # a disk without links
        shutil.copyfile(original, name)
