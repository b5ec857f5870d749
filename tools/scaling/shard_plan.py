"""The plan of the shards as the project's own stream makes it, for every reader of a large run: played, not computed anew.

Every :class:`mavil.data.loading.workers.Deliveries` and :class:`mavil.data.stream.clips.ClipStream` is the real one; only the
storage is made up: it notes what it is asked for and gives nothing, so that each clip comes out at once, as a damaged one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mavil.data.loading.continuing import describe_place, go_on
from mavil.data.loading.samples import ClipDecoder
from mavil.data.loading.workers import Deliveries, WorkerPosition
from mavil.data.stream import position
from mavil.data.stream.clips import RawClip
from mavil.data.stream.shard_set import ShardSet
from mavil.structs import Sample


@dataclass(frozen=True)
class Team:
    """So many ranks with so many workers and clips per batch each."""

    ranks: int
    workers: int
    device_batch: int
    shuffle_buffer: int

    @property
    def readers(self) -> int:
        """All workers of all ranks."""
        return self.ranks * self.workers


@dataclass(frozen=True)
class Readings:
    """What all readers of a team took of one epoch, in the order of the readers.

    Attributes:
        clips: ``[n]`` int64 clip numbers, reader after reader, each in its order.
        counts: ``[readers]`` int64 how many of them each reader took.
        sizes: ``[shards]`` int64 clips per shard.
    """

    team: Team
    clips: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray

    @property
    def readers(self) -> np.ndarray:
        """``[n]`` who took each."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def shards(self) -> np.ndarray:
        """``[n]`` the shard each lies in."""
        return np.searchsorted(np.cumsum(self.sizes), self.clips, side="right")

    def pairs(self, readers_per_group: int) -> np.ndarray:
        """``[p, 2]`` distinct (group of readers, shard): who opens what."""
        keys = np.unique(self.readers // readers_per_group * len(self.sizes) + self.shards)
        return np.stack([keys // len(self.sizes), keys % len(self.sizes)], axis=1)

    def ranks_per_shard_at(self, turn: int) -> np.ndarray:
        """``[shards touched]`` how many ranks read a shard for the batch after each reader's first ``turn`` clips."""
        ends = np.cumsum(self.counts)
        place = np.arange(len(self.clips)) - np.repeat(ends - self.counts, self.counts)
        now = (place >= turn) & (place < turn + self.team.device_batch)
        ranks = self.readers[now] // self.team.workers
        keys = np.unique(ranks * len(self.sizes) + self.shards[now])
        return np.unique(keys % len(self.sizes), return_counts=True)[1]


class NotingStorage:
    """Gives no byte of a shard and notes which clip was asked for; see :class:`mavil.data.stream.storage.Storage`."""

    location = "made up"
    is_local = True
    bytes_read = 0

    def __init__(self, shard_set: ShardSet) -> None:
        shards = shard_set.index.shards
        sizes = np.array([shard.num_clips for shard in shards])
        firsts = dict(zip((shard.name for shard in shards), (np.cumsum(sizes) - sizes).tolist(), strict=True))
        self._firsts = firsts
        # All shards of a made-up set are the same file.
        offsets = shard_set.rows()["offset"][: sizes[0]].tolist()
        self._number_at = {offset: number for number, offset in enumerate(offsets)}
        self.noted: list[int] = []

    def fetch(self, name: str) -> Path:
        """Nothing is there."""
        raise FileNotFoundError(name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Note the clip."""
        self.noted.append(self._firsts[name] + self._number_at[offset])
        return b""


class BlindDecoder(ClipDecoder):
    """Every clip is a sample without sound and picture."""

    def decode(self, raw: RawClip) -> list[Sample]:
        """Nothing is looked at."""
        return [Sample(raw.key, 0)]


@dataclass
class Playground:
    """A made-up set of shards with a storage that notes."""

    shard_set: ShardSet
    seed: int = 0
    sizes: np.ndarray = field(init=False)
    storage: NotingStorage = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = np.array([shard.num_clips for shard in self.shard_set.index.shards], dtype=np.int64)
        self.storage = NotingStorage(self.shard_set)

    def deliveries(self, team: Team, rank: int) -> Deliveries:
        """What a rank of that team begins a run with."""
        return Deliveries(
            ShardSet(self.shard_set.index, self.storage),
            BlindDecoder(None, None, seed=self.seed, training=True),
            team.device_batch,
            team.shuffle_buffer,
            draws=None,
            views=1,
            clip_seconds_limit=60.0,
            rank=rank,
            world_size=team.ranks,
            positions=[WorkerPosition()] * team.workers,
        )

    def play(self, team: Team, places: Sequence[dict[str, Any]] = (), epochs: int = 1) -> list[Readings]:
        """What every reader takes, from the beginning or from the ``places`` of all ranks, to the end of ``epochs`` epochs."""
        counts = np.zeros((epochs, team.readers), dtype=np.int64)
        taken: list[list[np.ndarray]] = [[] for _ in range(epochs)]
        with _one_plan_for_all(), _quiet():
            for rank in range(team.ranks):
                deliveries = self.deliveries(team, rank)
                if places:
                    go_on(places, deliveries)
                for worker in range(team.workers):
                    clips, counts[:, rank * team.workers + worker] = self._read(deliveries, worker, epochs)
                    for epoch, part in enumerate(clips):
                        taken[epoch].append(part)
        return [Readings(team, np.concatenate(taken[e]), counts[e], self.sizes) for e in range(epochs)]

    def _read(self, deliveries: Deliveries, worker: int, epochs: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Clips of one reader by epoch, and how many. Epochs are numbered from that of the position on."""
        start = deliveries.positions[worker]
        self.storage.noted.clear()
        counts = np.zeros(epochs, dtype=np.int64)
        for raw in deliveries.stream(worker).read(start.epoch, start.consumed):
            if raw.epoch >= start.epoch + epochs:
                break
            counts[raw.epoch - start.epoch] += 1
        noted = np.array(self.storage.noted[: counts.sum()], dtype=np.int64)
        return np.split(noted, np.cumsum(counts)[:-1]), counts

    def play_steps(self, team: Team, steps: int) -> tuple[Readings, list[dict[str, Any]]]:
        """What every reader has handed over in batches after so many steps, and the place of every rank then."""
        places, taken = [], []
        counts = np.zeros(team.readers, dtype=np.int64)
        with _one_plan_for_all(), _quiet():
            for rank in range(team.ranks):
                deliveries = self.deliveries(team, rank)
                positions = list(deliveries.positions)
                for worker in range(team.workers):
                    self.storage.noted.clear()
                    turns = len(range(worker, steps, team.workers))
                    for delivery in islice(replace(deliveries, next_worker=worker), turns):
                        positions[worker] = delivery.position
                    taken.append(np.array(self.storage.noted, dtype=np.int64))
                    counts[rank * team.workers + worker] = len(taken[-1])
                places.append(describe_place(deliveries, positions, steps % team.workers))
        return Readings(team, np.concatenate(taken), counts, self.sizes), places


@contextmanager
def _one_plan_for_all() -> Iterator[None]:
    """What is left of an epoch is the same list for all readers; each worker computes it, here it is kept for the next one."""
    original = position.unseen_places
    position.unseen_places = functools.lru_cache(maxsize=8)(original)
    try:
        yield
    finally:
        position.unseen_places = original


@contextmanager
def _quiet() -> Iterator[None]:
    """Each rank would say that the data go on with other readers."""
    logger = logging.getLogger("mavil.data.loading.continuing")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
