"""Write, index and verify WebDataset shards: tars in which each clip is ``KEY.<container>`` plus ``KEY.json``.

A folder of shards::

    000000.tar ...   clips_per_shard clips each, always the same bytes for the same clips
    rejects.csv      clips that were left out: key, path, cause, detail
    index.json       written last: counts, labels, size and checksum of every shard

A folder without ``index.json`` is not a set of shards: writing was interrupted.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from mavil.data.media import DecodeError, FrameWindow, MediaInfo, cut_clip, decode_audio, decode_frames, probe
from mavil.data.shard_index import INDEX, ShardIndex, ShardInfo, read_index, sha256_of, sync, verify_shards, write_index
from mavil.data.sources import Reject, read_source, write_rejects
from mavil.structs import MODALITIES, Clip, Modality, UserError, sample_seed

__all__ = [
    "CLIPS_PER_SHARD",
    "ShardIndex",
    "ShardInfo",
    "make_shards",
    "make_shards_from_source",
    "read_clip",
    "read_index",
    "verify_shards",
]

CLIPS_PER_SHARD = 256
"""About 50 MB of 10-s clips; small sets need smaller shards, at least one per loader worker."""
MIN_SECONDS = 0.1
"""A shorter clip is rejected as ``too_short``: it has fewer spectrogram steps than a patch [our choice]."""
REJECTS, STAGING = "rejects.csv", ".incomplete"


def read_clip(clip: Clip) -> bytes:
    """The media file of a clip from a folder or a CSV.

    Raises:
        DecodeError: see :func:`mavil.data.media.cut_clip`.
    """
    return cut_clip(clip.path, clip.start_seconds, clip.end_seconds)


def make_shards_from_source(
    source: Path, out: Path, *, skip: int = 0, limit: int | None = None, **options: Any
) -> ShardIndex:
    """Pack a folder or a CSV: its clips in source order without the first ``skip``, at most ``limit``.

    ``options`` are those of :func:`make_shards`.

    Raises:
        UserError: see :func:`mavil.data.sources.read_source` and :func:`make_shards`; or the range holds no clip.
    """
    clips = read_source(source)
    chosen = clips[skip : None if limit is None else skip + limit]
    if not chosen:
        raise UserError(f"{source} has {len(clips)} clips: none is left with skip {skip} and limit {limit}")
    return make_shards(chosen, out, **options)


def make_shards(
    clips: Sequence[Clip],
    out: Path,
    *,
    read: Callable[[Clip], bytes] = read_clip,
    clips_per_shard: int = CLIPS_PER_SHARD,
    seed: int = 0,
    keep_order: bool = False,
    require: Sequence[Modality] = MODALITIES,
    reject_silent: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
) -> ShardIndex:
    """Write clips as shards. Nothing in ``out`` changes before all of them are complete.

    Args:
        clips: what to pack; each key once.
        out: the folder to make.
        read: gives a clip's media file, or raises DecodeError.
        clips_per_shard: the last shard may hold fewer.
        seed: of the order in which clips are dealt to shards, so that a shard mixes classes.
        keep_order: deal them in the order given instead.
        require: a clip without one of these modalities is rejected.
        reject_silent: so is one whose sound is zero throughout.
        overwrite: replace the shards that ``out`` already holds.
        show_progress: draw a progress bar.

    Raises:
        UserError: ``out`` already holds shards, or no clip can be used.
    """
    _check_target(out, overwrite)
    if clips_per_shard < 1:
        raise UserError(f"{clips_per_shard} clips per shard: choose 1 or more")
    if len({clip.key for clip in clips}) < len(clips):
        raise ValueError("two clips have the same key; a shard cannot tell them apart")
    order = list(clips)
    if not keep_order:
        random.Random(sample_seed("shards", seed)).shuffle(order)
    staging = out / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        writer = _ShardWriter(staging, clips_per_shard)
        for clip in track(order, description="packing clips", disable=not show_progress):
            writer.add(clip, read, tuple(require), reject_silent)
        writer.finish_shard()
        write_rejects(staging / REJECTS, writer.rejects)
        if not writer.shards:
            raise _nothing_usable(out, staging, writer.rejects)
        return _publish(writer.index(out), staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@dataclass
class _ShardWriter:
    """Collects clips into tars; ``shards`` are the finished ones."""

    folder: Path
    clips_per_shard: int
    shards: list[ShardInfo] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    modalities: Counter[Modality] = field(default_factory=Counter)
    members: list[tuple[str, bytes]] = field(default_factory=list)

    def add(
        self, clip: Clip, read: Callable[[Clip], bytes], require: tuple[Modality, ...], reject_silent: bool
    ) -> None:
        try:
            media = read(clip)
            info = _check_clip(media, require, reject_silent)
        except DecodeError as error:
            self.rejects.append(Reject(clip.key, clip.path, error.cause, error.detail))
            return
        record = {"key": clip.key, "labels": clip.labels, "metadata": clip.metadata, **asdict(info)}
        ending = record.pop("ending")
        self.members += [
            (f"{clip.key}.{ending}", media),
            (f"{clip.key}.json", json.dumps(record, ensure_ascii=False).encode()),
        ]
        self.labels.update(clip.labels)
        self.modalities.update(m for m in MODALITIES if (info.has_audio if m == "audio" else info.has_video))
        if len(self.members) == 2 * self.clips_per_shard:
            self.finish_shard()

    def finish_shard(self) -> None:
        if not self.members:
            return
        path = self.folder / f"{len(self.shards):06d}.tar"
        with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, data in self.members:
                # TarInfo's own defaults are what makes the bytes repeatable: time 0, owner 0, mode 644.
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        sync(path)
        self.shards.append(ShardInfo(path.name, len(self.members) // 2, path.stat().st_size, sha256_of(path)))
        self.members = []

    def index(self, folder: Path) -> ShardIndex:
        return ShardIndex(
            folder=folder,
            num_clips=sum(shard.num_clips for shard in self.shards),
            num_with_audio=self.modalities["audio"],
            num_with_video=self.modalities["video"],
            label_counts=dict(sorted(self.labels.items())),
            rejected=dict(Counter(reject.cause for reject in self.rejects)),
            shards=tuple(self.shards),
        )


def _check_clip(media: bytes, require: tuple[Modality, ...], reject_silent: bool) -> MediaInfo:
    """Decode enough to know that the clip can be used: the first frame, and a second of sound or all of it."""
    info = probe(media)
    if info.duration_seconds < MIN_SECONDS:
        raise DecodeError("too_short", f"{info.duration_seconds:g} s, at least {MIN_SECONDS} s are needed")
    if "video" in require:
        decode_frames(media, FrameWindow(num_frames=1, frames_per_second=1.0, short_side=16))
    if "audio" in require:
        waveform = decode_audio(media, info.duration_seconds if reject_silent else 1.0)
        if reject_silent and not waveform.any():
            raise DecodeError("silent", "every sample is zero")
    return info


def _check_target(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the shards")
    if not overwrite and ((out / INDEX).exists() or any(out.glob("*.tar"))):
        raise UserError(f"{out}: already holds shards; choose another folder, or pass --overwrite to replace them")


def _nothing_usable(out: Path, staging: Path, rejects: list[Reject]) -> UserError:
    causes = ", ".join(f"{cause} {count}" for cause, count in Counter(reject.cause for reject in rejects).items())
    first = rejects[0]
    where = ""
    if not (out / INDEX).exists():  # a finished set keeps its own list
        os.replace(staging / REJECTS, out / REJECTS)
        where = f"; {out / REJECTS} lists all"
    return UserError(
        f"none of the {len(rejects)} clips can be used ({causes}), e.g. {first.path}: {first.detail}{where}"
    )


def _publish(index: ShardIndex, staging: Path) -> ShardIndex:
    """Move finished shards into their folder; without an index in between, so that a half-moved set is never taken for one."""
    (index.folder / INDEX).unlink(missing_ok=True)
    for old in index.folder.glob("[0-9]" * 6 + ".tar"):
        old.unlink()
    for name in [*(shard.name for shard in index.shards), REJECTS]:
        os.replace(staging / name, index.folder / name)
    sync(index.folder)
    write_index(index)
    return index
