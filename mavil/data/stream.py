"""Shards -> raw clips in a seeded order, split over ranks and workers, with a position to continue from.

A *reader* is one worker of one rank. What it yields in an epoch is a pure function of (seed, epoch, reader, number of
readers): shards are shuffled globally before they are dealt to readers, so that over the epochs any two clips can meet in a
batch; then each reader shuffles its clips in a buffer. The whole order of an epoch is computed from the clip counts in the
index before anything is read. Continuing from a position therefore means reading the rest of the same list: shards that are
used up are not opened, clips that are used up are not kept, and nothing is decoded or replayed.
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from webdataset import tariterators

from mavil.structs import UserError, sample_seed

RECORD_SUFFIX = "json"


@dataclass(frozen=True)
class ShardFile:
    """One tar file and how many clips the index says are in it."""

    path: Path
    num_clips: int


@dataclass(frozen=True)
class RawClip:
    """One clip as it lies in a shard, undecoded.

    ``consumed`` counts the clips this reader has taken from ``epoch``, this one included: ``(epoch, consumed)`` is the
    position after it. ``media`` and ``record`` (JSON) are ``None`` where the shard has no such member; ``damage`` says why
    when the shard could not be read as far as this clip.
    """

    key: str
    shard: str
    epoch: int
    consumed: int
    media: bytes | None = None
    record: bytes | None = None
    damage: str | None = None


@dataclass(frozen=True)
class _EpochPlan:
    """``shards`` in reading order; ``order`` ``[n]`` int64 lists clips, numbered through those shards, as they are yielded."""

    shards: list[ShardFile]
    order: np.ndarray


class ClipStream:
    """The raw clips of one reader.

    Args:
        shards: all shards of the set, the same list in the same order for every reader; files are opened directly, so a
            name is never taken for a URL or a command.
        seed: of the run.
        training: endless and shuffled; otherwise one pass in the order of the shards, each clip exactly once over all
            readers, whose shares may differ in size.
        shuffle_buffer: clips held back to shuffle among (training only). That many undecoded clips are kept in memory.
        reader: number of this reader, ``rank * workers + worker``.
        num_readers: ``ranks * workers``.

    Raises:
        UserError: there are fewer shards than readers to train with.
    """

    def __init__(
        self,
        shards: Sequence[ShardFile],
        *,
        seed: int,
        training: bool,
        shuffle_buffer: int,
        reader: int = 0,
        num_readers: int = 1,
    ) -> None:
        self.shards = [shard for shard in shards if shard.num_clips > 0]
        self.seed = seed
        self.training = training
        self.shuffle_buffer = shuffle_buffer
        self.reader = reader
        self.num_readers = num_readers
        if training and len(self.shards) < num_readers:
            raise UserError(
                f"{len(self.shards)} shards cannot feed {num_readers} readers (ranks x data.num_workers): use fewer workers, "
                f"or make the shards again with fewer clips each, so that there are at least {num_readers}"
            )

    def read(self, epoch: int = 0, consumed: int = 0) -> Iterator[RawClip]:
        """Clips from a position on; ``consumed`` clips of ``epoch`` are left out. Endless in training.

        A shard that breaks off yields clips with ``damage`` in place of what is lost, so that positions stay true.

        Raises:
            UserError: a shard holds more clips than the index says.
        """
        while True:
            yield from self._read_epoch(epoch, consumed)
            if not self.training:
                return
            epoch, consumed = epoch + 1, 0

    def _read_epoch(self, epoch: int, consumed: int) -> Iterator[RawClip]:
        plan = self._plan(epoch)
        is_wanted = np.zeros(sum(shard.num_clips for shard in plan.shards), dtype=bool)
        is_wanted[plan.order[consumed:]] = True
        reading = _read_wanted(plan.shards, is_wanted)
        held: dict[int, tuple[ShardFile, dict]] = {}  # read, but not yet their turn: never more than the buffer
        for number in plan.order[consumed:].tolist():
            while number not in held:
                read_number, shard, members = next(reading)
                held[read_number] = shard, members
            consumed += 1
            yield _raw_clip(*held.pop(number), epoch, consumed)
        # Nothing wanted is left, but the last shard is read to its end, which tells whether it holds what the index says.
        next(reading, None)

    def _plan(self, epoch: int) -> _EpochPlan:
        if not self.training:
            return self._evaluation_plan()
        shards = list(self.shards)
        random.Random(sample_seed(self.seed, "shards", epoch)).shuffle(shards)
        shards = shards[self.reader :: self.num_readers]
        num_clips = sum(shard.num_clips for shard in shards)
        seed = sample_seed(self.seed, "clips", epoch, self.reader, self.num_readers)
        return _EpochPlan(shards, buffer_shuffle(num_clips, self.shuffle_buffer, seed))

    def _evaluation_plan(self) -> _EpochPlan:
        if len(self.shards) >= self.num_readers:
            shards = self.shards[self.reader :: self.num_readers]
            return _EpochPlan(shards, np.arange(sum(shard.num_clips for shard in shards)))
        # Too few shards to deal: every reader passes through all of them and keeps each num_readers-th clip.
        num_clips = sum(shard.num_clips for shard in self.shards)
        return _EpochPlan(self.shards, np.arange(self.reader, num_clips, self.num_readers))


def buffer_shuffle(num_clips: int, buffer_size: int, seed: int) -> np.ndarray:
    """``[num_clips]`` int64: the order in which a shuffle buffer lets clips ``0, 1, ...`` out.

    At most ``buffer_size`` clips are held back at any moment, so clip ``i`` leaves no earlier than ``i - buffer_size``.
    """
    generator = random.Random(seed)
    order = np.empty(num_clips, dtype=np.int64)
    buffer: list[int] = []
    taken = 0
    for number in range(num_clips):
        buffer.append(number)
        if len(buffer) > buffer_size:
            chosen = int(generator.random() * len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            order[taken] = buffer.pop()
            taken += 1
    generator.shuffle(buffer)
    order[taken:] = buffer
    return order


def _read_wanted(shards: list[ShardFile], is_wanted: np.ndarray) -> Iterator[tuple[int, ShardFile, dict]]:
    """Number, shard and members of the wanted clips, in reading order; shards without any are not opened."""
    first = 0
    for shard in shards:
        if is_wanted[first : first + shard.num_clips].any():
            for number, members in enumerate(_read_shard(shard), start=first):
                if is_wanted[number]:
                    yield number, shard, members
        first += shard.num_clips


def _read_shard(shard: ShardFile) -> Iterator[dict]:
    """The members of each clip by suffix, as bytes, exactly ``num_clips`` times.

    webdataset's tar iterators only split and group here; its decoders, which unpickle, and its opener, which runs ``pipe:``
    names in a shell, are never reached.
    """
    num_read = 0
    damage = "the shard holds fewer clips than its index says"
    try:
        with open(shard.path, "rb") as file:
            members = tariterators.tar_file_expander([{"url": shard.path.name, "stream": file}])
            for clip in tariterators.group_by_keys(members, keys=_split_name):
                if num_read == shard.num_clips:
                    raise UserError(
                        f"{shard.path}: holds more than the {shard.num_clips} clips its index lists: "
                        "make the shards again, the folder was changed after it was indexed"
                    )
                num_read += 1
                yield clip
    except UserError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        damage = f"the shard cannot be read to its end ({type(error).__name__})"
    for number in range(num_read, shard.num_clips):
        yield {"__key__": f"clip {number}", "__damage__": damage}


def _split_name(name: str) -> tuple[str, str] | tuple[None, None]:
    """``a/b.c.mp4`` -> ``a/b.c``, ``mp4``: unlike webdataset's own rule this leaves dots in keys alone."""
    key, dot, suffix = name.rpartition(".")
    return (key, suffix) if dot and key and "/" not in suffix else (None, None)


def _raw_clip(shard: ShardFile, members: dict, epoch: int, consumed: int) -> RawClip:
    media = next((data for suffix, data in members.items() if suffix != RECORD_SUFFIX and suffix[:2] != "__"), None)
    return RawClip(
        key=members["__key__"],
        shard=shard.path.name,
        epoch=epoch,
        consumed=consumed,
        media=media,
        record=members.get(RECORD_SUFFIX),
        damage=members.get("__damage__"),
    )
