"""Stream -> Batch: worker processes decode, the parent counts what was left out and says where to continue.

Training yields full batches without end; evaluation yields each clip exactly once, the last batch of each worker short.

**Continuing exactly.** Workers take turns in a fixed order. Every batch carries the position of all workers of its rank as
of that batch (which clips each has consumed, in which epoch) and whose turn is next. A loader given that position hands
over the next batch first, then all later ones, whatever clips were left out in between: worker process ``j`` of the new
loader plays the part of worker ``(j + next) mod workers``.

**Start method.** Workers are forked from a fork server: a fresh process that has imported this module and run nothing.
Forking the training process itself could copy a lock that one of torch's threads holds, and hang; spawning would import
torch anew, seconds and hundreds of MiB for every worker. As with spawn, a script that iterates a loader needs an
``if __name__ == "__main__"`` guard. torch itself gives each worker one thread.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from mavil import distributed
from mavil.data.labels import Vocabulary
from mavil.data.media import FrameWindow
from mavil.data.samples import BYTES_PER_GIB, Cache, ClipDecoder
from mavil.data.shards import read_index
from mavil.data.skips import SkipTally
from mavil.data.stream import ShardFile
from mavil.data.workers import Deliveries, WorkerPosition
from mavil.structs import Batch, Modality, UserError, sample_seed


class Loader:
    """Batches of one rank, made by :func:`build_loader`. Iterating again starts the same pass again.

    Attributes:
        num_clips: clips in the whole set, over all ranks, as the index counts them.
    """

    def __init__(self, deliveries: Deliveries, tally: SkipTally, num_workers: int, pin_memory: bool) -> None:
        self.num_clips = sum(shard.num_clips for shard in deliveries.shards)
        self._deliveries = deliveries
        self._tally = tally
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._processes = self._make_processes()

    def _make_processes(self) -> DataLoader:
        return DataLoader(
            self._deliveries,
            batch_size=None,
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin_memory,
            persistent_workers=self._num_workers > 0,
            multiprocessing_context=_worker_context() if self._num_workers > 0 else None,
            # Without one of its own it would draw from the global generator, and a continued run would differ.
            generator=torch.Generator(),
        )

    def close(self) -> None:
        """End the worker processes, which otherwise live, with their caches, as long as this loader."""
        self._processes = self._make_processes()  # none start before the next iteration

    @property
    def skip_counts(self) -> dict[str, int]:
        """Clips left out by cause, over all workers of this rank, in the present pass up to the last batch handed out."""
        return dict(self._tally.counts)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order.

        Raises:
            UserError: too many clips cannot be used (the message counts the causes), a label is not in the vocabulary, or
                the decoder is not installed.
        """
        try:
            yield from self._batches()
        except UserError:
            # The traceback may keep this loader alive for long.
            self.close()
            raise

    def _batches(self) -> Iterator[Batch]:
        training = self._deliveries.decoder.training
        positions = list(self._deliveries.positions)
        self._tally.start()
        for delivery in self._processes:
            if delivery.failure is not None:
                raise UserError(delivery.failure)
            self._tally.add(delivery.num_seen, delivery.skips)
            positions[delivery.worker] = delivery.position
            if delivery.batch is None:
                continue
            if training:
                delivery.batch.position = self._position(positions, (delivery.worker + 1) % len(positions))
            yield delivery.batch
        self._tally.finish()

    def _position(self, positions: list[WorkerPosition], next_worker: int) -> dict[str, Any]:
        return {
            **_identity(self._deliveries),
            "next_worker": next_worker,
            "epochs": [position.epoch for position in positions],
            "consumed": [position.consumed for position in positions],
            "num_reports": [position.num_reports for position in positions],
        }


def build_loader(
    folder: str | Path,
    *,
    modalities: tuple[Modality, ...],
    audio_seconds: float,
    frame_window: FrameWindow | None,
    batch_size: int,
    seed: int,
    num_workers: int,
    training: bool,
    backend: str = "pyav",
    shuffle_buffer: int = 512,
    cache_gib: float = 0.0,
    max_skip_ratio: float = 0.05,
    vocabulary: Vocabulary | None = None,
    label_field: str | None = None,
    position: dict[str, Any] | None = None,
    pin_memory: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> Loader:
    """A loader of one rank's share of a folder of shards. What is decoded, and how, is told by :class:`ClipDecoder`.

    Args:
        batch_size: clips per batch of this rank.
        num_workers: worker processes; 0 decodes in this one, in exactly the order of 1.
        training: endless, shuffled, full batches; otherwise one pass over every clip, once over all ranks.
        shuffle_buffer: undecoded clips each worker keeps in memory to shuffle among, in training.
        cache_gib: memory per worker for decoded clips, GiB.
        max_skip_ratio: the largest share of clips that may be unusable.
        position: ``Batch.position`` of the last batch that this rank has used, to continue after it (training).
        pin_memory: for CUDA runs.
        rank, world_size: which share; from the process group by default.

    Raises:
        UserError: no shards there, too few clips or shards, or a position in another order of clips.
    """
    if "video" in modalities and frame_window is None:
        raise ValueError("'video' among the modalities needs a frame_window")
    if position is not None and not training:
        raise ValueError("a position belongs to a training loader; evaluation always makes a whole pass")
    cache = Cache(int(cache_gib * BYTES_PER_GIB))
    deliveries = Deliveries(
        _find_shards(Path(folder)),
        ClipDecoder(modalities, audio_seconds, frame_window, backend, seed, training, vocabulary, label_field, cache),
        batch_size,
        shuffle_buffer,
        rank=distributed.rank() if rank is None else rank,
        world_size=distributed.world_size() if world_size is None else world_size,
        positions=[WorkerPosition()] * max(1, num_workers),
    )
    _check_enough(Path(folder), deliveries)
    if position is not None:
        _continue_from(position, deliveries)
    num_clips = sum(shard.num_clips for shard in deliveries.shards)
    tally = SkipTally(str(folder), max_skip_ratio, num_clips, sees_all=deliveries.world_size == 1)
    return Loader(deliveries, tally, num_workers, pin_memory)


def _find_shards(folder: Path) -> list[ShardFile]:
    index = read_index(folder)
    return [ShardFile(path, shard.num_clips) for path, shard in zip(index.shard_paths, index.shards, strict=True)]


def _check_enough(folder: Path, deliveries: Deliveries) -> None:
    num_clips = sum(shard.num_clips for shard in deliveries.shards)
    if num_clips == 0:
        raise UserError(f"{folder}: its shards hold no clip; the rejects list of mavil shards make says why")
    needed = deliveries.batch_size * deliveries.world_size
    if deliveries.decoder.training and num_clips < needed:
        raise UserError(
            f"{folder}: {num_clips} clips are fewer than one training batch of {needed} (over all ranks): "
            "set trainer.device_batch smaller or pack more clips"
        )
    deliveries.stream(worker=0)  # it checks the number of shards


def _identity(deliveries: Deliveries) -> dict[str, int]:
    """What the order of clips depends on: a position has no meaning where one of these differs."""
    return {
        "seed": deliveries.decoder.seed,
        "world_size": deliveries.world_size,
        "rank": deliveries.rank,
        "num_workers": len(deliveries.positions),
        "shuffle_buffer": deliveries.shuffle_buffer,
        "num_shards": len(deliveries.shards),
        "shards": sample_seed(*((shard.path.name, shard.num_clips) for shard in deliveries.shards)),
    }


def _continue_from(position: dict[str, Any], deliveries: Deliveries) -> None:
    now = _identity(deliveries)
    changed = [
        f"{name} was {position.get(name)}, is {value}" for name, value in now.items() if position.get(name) != value
    ]
    if changed:
        raise UserError(
            f"the saved place in the data belongs to another order of clips ({'; '.join(changed)}): "
            "continue with the same shards, seed, ranks, data.num_workers and data.shuffle_buffer, or start a new run"
        )
    fields = zip(position["epochs"], position["consumed"], position["num_reports"], strict=True)
    deliveries.positions = [WorkerPosition(*values) for values in fields]
    deliveries.next_worker = position["next_worker"]


def _worker_context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _as_it_is(delivery: Any) -> Any:
    """In place of the DataLoader's own conversion, which would look into every delivery."""
    return delivery
