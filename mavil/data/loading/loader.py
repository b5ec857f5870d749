"""Stream -> Batch: worker processes decode, the parent counts what was left out and says where to continue.

Training yields full batches without end; evaluation yields each clip exactly once, the last batch of each worker short.

**Continuing exactly.** Workers take turns in a fixed order. Every batch carries the position of all workers of its rank as
of that batch (which clips each has consumed, in which epoch) and whose turn is next. A loader given that position hands
over the next batch first, then all later ones, whatever clips were left out in between: worker process ``j`` of the new
loader plays the part of worker ``(j + next) mod workers``. A worker process that dies is replaced in the same way, so its
death changes no batch; a clip in whose decoding two have died is left out.

How worker processes are started is told by :func:`mavil.data.worker_processes.worker_context`; torch gives each one thread.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from mavil import distributed
from mavil.data.loading.continuing import describe_place, go_on
from mavil.data.loading.samples import ClipDecoder
from mavil.data.loading.skips import SkipPolicy, SkipTally
from mavil.data.loading.stacks import answer_with_stacks
from mavil.data.loading.workers import DESK_FIELDS, Deliveries, Delivery, WorkerPosition
from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.shard_set import open_shards
from mavil.data.stream.weights import Draws
from mavil.data.worker_processes import prepare_worker, worker_context
from mavil.structs import MODALITIES, Batch, UserError

logger = logging.getLogger(__name__)

MOST_DEATHS = 4
"""Worker processes that may die one after the other without a batch in between: two for each of two deadly clips."""
DYING_SECONDS = 2.0
"""So long after its last message was cut off a worker process is seen to have ended."""


class Loader:
    """Batches of one rank, made by :func:`build_loader`. Iterating again starts the same pass again.

    Attributes:
        num_clips: clips in the whole set, over all ranks, as the index counts them.
        samples_per_epoch: samples that one pass gives over all ranks: clips or weighted draws, times views.
    """

    def __init__(self, deliveries: Deliveries, tally: SkipTally, num_workers: int, pin_memory: bool) -> None:
        self.num_clips = deliveries.shards.index.num_clips
        self.samples_per_epoch = deliveries.stream(worker=0).items_per_epoch * deliveries.views
        self._deliveries = deliveries
        self._tally = tally
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._num_samples = self._bytes_read = 0
        self._without: Counter[str] = Counter()
        self._processes = self._make_processes(deliveries)
        self._running: Any = None

    def _make_processes(self, deliveries: Deliveries) -> DataLoader:
        return DataLoader(
            deliveries,
            batch_size=None,
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin_memory,
            persistent_workers=self._num_workers > 0,
            # As soon as they live: the program may be killed before it asks them for the first batch.
            worker_init_fn=_prepare,
            multiprocessing_context=worker_context("mavil") if self._num_workers > 0 else None,
            # Without one of its own it would draw from the global generator, and a continued run would differ.
            generator=torch.Generator(),
        )

    def close(self) -> None:
        """End the worker processes, which otherwise live, with their caches, as long as this loader.

        At once: at the end of a program torch would wait five seconds for each.
        """
        if self._running is not None and self._num_workers > 0:
            _end(self._running)
        self._running = None
        self._processes = self._make_processes(self._deliveries)  # none start before the next iteration

    @property
    def skip_counts(self) -> dict[str, int]:
        """Clips left out by cause, over all workers of this rank, in the present pass up to the last batch handed out."""
        return dict(self._tally.counts)

    @property
    def counts(self) -> dict[str, int]:
        """What this rank has to report: ``skipped_<cause>``, ``samples`` handed over, ``bytes_read`` for them.

        Where some of those samples lack a modality, also ``without_audio`` and ``without_video``.
        """
        skipped = {f"skipped_{cause}": count for cause, count in self._tally.counts.items()}
        without = {f"without_{modality}": count for modality, count in self._without.items() if count}
        return {**skipped, **without, "samples": self._num_samples, "bytes_read": self._bytes_read}

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order.

        Raises:
            UserError: too many clips cannot be used (the message counts the causes), a label is not in the vocabulary, the
                decoder is not installed, the shards can no longer be reached, or worker processes keep dying.
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
        self._num_samples = self._bytes_read = 0
        self._without = Counter()
        for delivery in self._undying(positions):
            if delivery.failure is not None:
                raise UserError(delivery.failure)
            self._tally.add(delivery.num_seen, delivery.skips)
            self._bytes_read += delivery.bytes_read
            positions[delivery.worker] = delivery.position
            if delivery.batch is None:
                continue
            self._num_samples += len(delivery.batch)
            self._without.update(_lacking(delivery.batch))
            if training:
                next_worker = (delivery.worker + 1) % len(positions)
                delivery.batch.position = describe_place(self._deliveries, positions, next_worker)
            yield delivery.batch
        self._tally.finish()

    def _undying(self, positions: list[WorkerPosition]) -> Iterator[Delivery]:
        """All deliveries in order, whatever worker processes die; ``positions`` are kept up to date by the caller."""
        deliveries, processes = self._deliveries, self._processes
        next_worker, deaths, in_hand = deliveries.next_worker, 0, set[tuple[int, int, int]]()
        while True:
            running = self._running = iter(processes)
            try:
                for delivery in running:
                    yield delivery
                    next_worker, deaths = (delivery.worker + 1) % len(positions), 0
                return
            except (RuntimeError, OSError, EOFError) as error:
                dead = _dead_workers(running)
                if not dead:
                    raise
                deaths += 1
                _end(running)
                suspects = self._take_from_hand([(w + deliveries.next_worker) % len(positions) for w, _ in dead])
                self._deliveries = replace(self._deliveries, deadly=self._deliveries.deadly | (suspects & in_hand))
                self.close()
                in_hand = suspects
                cause = _cause_of_death([code for _, code in dead])
                if deaths > MOST_DEATHS:
                    raise UserError(
                        f"{deliveries.shards.storage.location}: loader workers died {deaths} times in a row ({cause}): use "
                        "fewer data.num_workers or a smaller data.shuffle_buffer, or look for the clip with mavil shards check"
                    ) from error
                logger.warning("a loader worker %s; a new one goes on in its place (%d in a row)", cause, deaths)
                deliveries = replace(self._deliveries, positions=list(positions), next_worker=next_worker)
                processes = self._make_processes(deliveries)

    def _take_from_hand(self, workers: list[int]) -> set[tuple[int, int, int]]:
        """(worker, epoch, consumed) of the clips these workers had in hand, and have no longer."""
        desk, taken = self._deliveries.desk, set()
        assert desk is not None
        for worker in workers:
            place = slice(DESK_FIELDS * worker, DESK_FIELDS * (worker + 1))
            epoch, consumed = desk[place]
            taken.add((worker, epoch, consumed))
            desk[place] = [0, 0]
        return taken


def build_loader(
    location: str | Path,
    decoder: ClipDecoder,
    *,
    batch_size: int,
    num_workers: int,
    shuffle_buffer: int = 512,
    views: int = 1,
    draws: Draws | None = None,
    remote: RemoteOptions | None = None,
    skips: SkipPolicy | None = None,
    clip_seconds_limit: float = 60.0,
    places: Sequence[dict[str, Any]] | None = None,
    pin_memory: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> Loader:
    """A loader of one rank's share of a set of shards.

    Args:
        location: folder or address of the shards.
        decoder: what of a clip is decoded, and whether to train on it: endless, shuffled, full batches. Otherwise one pass
            over every clip, once over all ranks, without what is said to be for training below.
        batch_size: clips per batch of this rank.
        num_workers: worker processes; 0 decodes in this one, in exactly the order of 1.
        shuffle_buffer: clips among which each worker shuffles (training).
        views: batches made of each decoded one, with other seeds (training).
        draws: weighted sampling (training); ``None`` is every clip once per epoch.
        remote: how shards at an address are read.
        skips: how many clips may be unusable.
        clip_seconds_limit: a clip that takes longer to decode is unusable, s.
        places: ``Batch.position`` of the last batch each rank has used, to continue after it; see :func:`go_on` (training).
        pin_memory: for CUDA runs.
        rank, world_size: which share; from the process group by default.

    Raises:
        UserError: no shards, too few clips, or places in another order of clips.
    """
    if places and not decoder.training:
        raise ValueError("a place belongs to a training loader; evaluation always makes a whole pass")
    deliveries = Deliveries(
        open_shards(location, remote or RemoteOptions()),
        decoder,
        batch_size,
        shuffle_buffer,
        draws=draws if decoder.training else None,
        views=views if decoder.training else 1,
        clip_seconds_limit=clip_seconds_limit,
        rank=distributed.rank() if rank is None else rank,
        world_size=distributed.world_size() if world_size is None else world_size,
        positions=[WorkerPosition()] * max(1, num_workers),
        desk=worker_context("mavil").RawArray("q", DESK_FIELDS * num_workers) if num_workers else None,
    )
    if places is not None:
        go_on(places, deliveries)
    _check_enough(deliveries)
    num_clips, sees_all = deliveries.shards.index.num_clips, deliveries.world_size == 1
    return Loader(
        deliveries, SkipTally(str(location), skips or SkipPolicy(), num_clips, sees_all), num_workers, pin_memory
    )


def _check_enough(deliveries: Deliveries) -> None:
    location, num_clips = deliveries.shards.storage.location, deliveries.shards.index.num_clips
    if num_clips == 0:
        raise UserError(f"{location}: its shards hold no clip; the rejects list of mavil shards make says why")
    needed = deliveries.batch_size * deliveries.world_size
    if deliveries.decoder.training and num_clips < needed:
        raise UserError(
            f"{location}: {num_clips} clips are fewer than one training batch of {needed} (over all ranks): "
            "set trainer.device_batch smaller or pack more clips"
        )


def _lacking(batch: Batch) -> dict[str, int]:
    """Samples without each modality."""
    flags = {modality: getattr(batch, f"{modality}_present") for modality in MODALITIES}
    return {modality: int((~present).sum()) for modality, present in flags.items() if present is not None}


def _dead_workers(running: Any) -> list[tuple[int, int]]:
    """Number and exit code of worker processes that have ended; one that broke off a message may be about to."""
    processes = list(getattr(running, "_workers", ()))
    wait([process.sentinel for process in processes], DYING_SECONDS)
    return [(number, process.exitcode) for number, process in enumerate(processes) if process.exitcode is not None]


def _end(running: Any) -> None:
    """End the remaining workers at once: what they hold is made again, and one may wait for a lock that a dead one had."""
    for process in running._workers:
        process.kill()
    running._shutdown_workers()


def _cause_of_death(exit_codes: list[int]) -> str:
    if any(code < 0 for code in exit_codes):
        number = -min(exit_codes)
        return f"was killed by {signal.Signals(number).name}" + (
            " (out of memory?)" if number == signal.SIGKILL else ""
        )
    return "hung in a decoder or ended by itself"


def _prepare(_worker: int) -> None:
    prepare_worker()
    answer_with_stacks()


def _as_it_is(delivery: Any) -> Any:
    """In place of the DataLoader's own conversion, which would look into every delivery."""
    return delivery
