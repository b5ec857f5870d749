"""Shards from the clips that passed the first look: each shard is one task, finished whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mavil.atomic_files import sha256_of, sync
from mavil.data.deadline import HARD_LIMIT_FACTOR, TimeLimitExceeded, time_limit
from mavil.data.isolation import map_isolated
from mavil.data.media.containers import DecodeError, MediaInfo, probe
from mavil.data.shards.index import ShardInfo
from mavil.data.shards.plan import write_json
from mavil.data.shards.screening import FAILURES, Rules
from mavil.data.shards.tars import survey_shard, write_shard
from mavil.data.sources.listing import Reject
from mavil.structs import Clip, Modality

_MORE_TRIES = 3


@dataclass(frozen=True)
class ShardTask:
    """The clips dealt to one shard; ``left_out`` are causes by key of those that have ended a process."""

    number: int
    clips: tuple[Clip, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name without its ending."""
        return f"{self.number:06d}"


@dataclass(frozen=True)
class FinishedShard:
    """What lies in a shard: written beside it as JSON, once it is complete.

    ``rows`` are those of :mod:`mavil.data.shards.clip_table` with the weight last, ``labels`` the class names, ``keys`` the
    keys, one per clip. ``info`` of ``None`` is a shard none of whose clips could be used.
    """

    info: ShardInfo | None
    keys: tuple[str, ...]
    rows: tuple[tuple, ...]
    labels: tuple[tuple[str, ...], ...]
    num_with: dict[Modality, int]
    rejects: tuple[Reject, ...]


def deal(clips: Sequence[Clip], clips_per_shard: int) -> list[ShardTask]:
    """The fewest shards that hold all clips, in their order; their sizes differ by one at most."""
    num_shards = -(-len(clips) // clips_per_shard)
    size, num_larger = divmod(len(clips), num_shards or 1)
    tasks, first = [], 0
    for number in range(num_shards):
        end = first + size + (number < num_larger)
        tasks.append(ShardTask(number, tuple(clips[first:end])))
        first = end
    return tasks


def write_shards(
    tasks: Sequence[ShardTask],
    staging: Path,
    *,
    read: Callable[[Clip], bytes],
    rules: Rules,
    workers: int,
    seconds_per_clip: float,
    show_progress: bool,
) -> list[FinishedShard]:
    """Write the shards that are not finished yet; all of them in order.

    Raises:
        RuntimeError: a process ends again and again, and not because of a clip.
    """
    waiting = [task for task in tasks if read_finished(staging, task.name) is None]
    write = partial(
        write_one, staging=staging, read=read, rules=rules, seconds_per_clip=seconds_per_clip, is_apart=workers > 0
    )
    longest = max((len(task.clips) for task in waiting), default=1)
    tries = _MORE_TRIES
    while waiting:
        failed = []
        for outcome in map_isolated(
            write,
            waiting,
            workers=workers,
            seconds_per_item=longest * HARD_LIMIT_FACTOR * seconds_per_clip,
            description="writing shards",
            show_progress=show_progress,
        ):
            if outcome.failure is not None:
                failed.append((outcome.item, outcome.failure))
        waiting = [_without_culprit(task, failure, staging) for task, failure in failed]
        if waiting and all(
            len(new.left_out) == len(old.left_out) for new, (old, _) in zip(waiting, failed, strict=True)
        ):
            tries -= 1
        if not tries:
            raise RuntimeError(f"the process that writes shard {waiting[0].name} ends, and not because of a clip")
    finished = [read_finished(staging, task.name) for task in tasks]
    return [shard for shard in finished if shard is not None]


def write_one(
    task: ShardTask, staging: Path, read: Callable[[Clip], bytes], rules: Rules, seconds_per_clip: float, is_apart: bool
) -> None:
    """Write one shard and what lies in it; ``is_apart``: in a process of its own, which a clip that hangs may end."""
    place = staging / f"{task.name}.at"
    clips = _UsableClips(task, read, rules, partial(time_limit, seconds_per_clip, ends_process=is_apart), place)
    # Should a worker outlive a program that was killed, it must not write into the file of its successor.
    aside = staging / f"{task.name}.tar.{os.getpid()}.partial"
    write_shard(aside, clips.members())
    infos, info, rows = [info for _, info in clips.used], None, []
    if infos:
        sync(aside)
        info = ShardInfo(f"{task.name}.tar", len(infos), aside.stat().st_size, sha256_of(aside))
        places = [place for _, place in survey_shard(aside)]
        rows = [(*place, clip.weight) for place, (clip, _) in zip(places, clips.used, strict=True)]
        os.replace(aside, staging / info.name)
    else:
        aside.unlink()
    finished = FinishedShard(
        info=info,
        keys=tuple(clip.key for clip, _ in clips.used),
        rows=tuple(rows),
        labels=tuple(clip.labels for clip, _ in clips.used),
        num_with={"audio": sum(i.has_audio for i in infos), "video": sum(i.has_video for i in infos)},
        rejects=tuple(clips.rejects),
    )
    sync(staging)  # the shard's name before the file that says it is finished
    write_json(staging / f"{task.name}.json", asdict(finished))
    place.unlink()


@dataclass
class _UsableClips:
    """Reads the clips of a shard one after the other; the file ``place`` names the one it is at."""

    task: ShardTask
    read: Callable[[Clip], bytes]
    rules: Rules
    time_limit: Callable[[], AbstractContextManager[None]]
    place: Path
    used: list[tuple[Clip, MediaInfo]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def members(self) -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
        """What goes into the tar: key, ending, media, record."""
        for clip in self.task.clips:
            self.place.write_text(clip.key, encoding="utf-8")
            if clip.key in self.task.left_out:
                self._reject(clip, self.task.left_out[clip.key])
                continue
            try:
                with self.time_limit():
                    media = self.read(clip)
                    info = check_media(media, self.rules)
            except DecodeError as error:
                self.rejects.append(Reject(clip.key, clip.path, error.cause, error.detail))
            except TimeLimitExceeded:
                self._reject(clip, "timeout")
            else:
                self.used.append((clip, info))
                measured = {name: value for name, value in asdict(info).items() if name != "track_seconds"}
                record = {"key": clip.key, "labels": clip.labels, "metadata": clip.metadata, **measured}
                yield clip.key, record.pop("ending"), media, record

    def _reject(self, clip: Clip, failure: str) -> None:
        self.rejects.append(Reject(clip.key, clip.path, failure, FAILURES[failure]))


def check_media(media: bytes, rules: Rules) -> MediaInfo:
    """What a media file holds, as far as it may be used.

    Raises:
        DecodeError: it is too short, lacks a required modality, or cannot be read.
    """
    info = probe(media)
    if info.duration_seconds < rules.min_seconds:
        raise DecodeError("too_short", f"{info.duration_seconds:g} s, at least {rules.min_seconds:g} s are needed")
    if "audio" in rules.require and not info.has_audio:
        raise DecodeError("no_audio", "it has no sound")
    if "video" in rules.require and not info.has_video:
        raise DecodeError("no_video", "it has no picture")
    return info


def read_finished(folder: Path, name: str) -> FinishedShard | None:
    """What lies in a finished shard; ``None`` if it is not finished."""
    try:
        tree = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return FinishedShard(
            info=ShardInfo(**tree["info"]) if tree["info"] else None,
            keys=tuple(tree["keys"]),
            rows=tuple(tuple(row) for row in tree["rows"]),
            labels=tuple(tuple(labels) for labels in tree["labels"]),
            num_with=tree["num_with"],
            rejects=tuple(Reject(**reject) for reject in tree["rejects"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _without_culprit(task: ShardTask, failure: str, staging: Path) -> ShardTask:
    """The same shard without the clip at which its process ended."""
    try:
        key = (staging / f"{task.name}.at").read_text(encoding="utf-8")
    except OSError:
        return task
    if key not in {clip.key for clip in task.clips}:
        return task
    return ShardTask(task.number, task.clips, {**task.left_out, key: failure})
