"""The workers' side of the loader: each worker process turns its share of the clips into batches and hands them over."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass, field, replace

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mavil.data.deadline import TimeLimitExceeded, time_limit
from mavil.data.loading.batches import stack_samples
from mavil.data.loading.samples import ClipDecoder, UnusableClip
from mavil.data.loading.skips import Skip
from mavil.data.stream.clips import ClipStream, RawClip
from mavil.data.stream.position import History
from mavil.data.stream.shard_set import ShardSet
from mavil.data.stream.weights import Draws
from mavil.seeds import sample_seed
from mavil.structs import Batch, Sample, UserError

SKIPS_PER_REPORT = 16
"""A worker that leaves out this many clips says so before its batch is full, so that hopeless data ends the run."""
DESK_FIELDS = 2


@dataclass(frozen=True)
class WorkerPosition:
    """Where one worker is: it has handed over what it made of the first ``consumed`` clips of ``epoch``.

    Turns since then that are not to be repeated on continuing: ``num_reports`` without a batch, then ``num_views`` views of
    the batch under way, which ends at ``under_way`` (epoch, consumed). Of the clip after those, ``num_windows`` windows
    were in the last batch (evaluation).
    """

    epoch: int = 0
    consumed: int = 0
    num_reports: int = 0
    num_views: int = 0
    under_way: tuple[int, int] | None = None
    num_windows: int = 0

    @property
    def seen(self) -> tuple[int, int]:
        """(epoch, consumed) with the clips of the batch under way."""
        return self.under_way or (self.epoch, self.consumed)


@dataclass
class Delivery:
    """What a worker hands over in one turn: a batch, or only a report, or (``failure``) the reason why it stopped."""

    worker: int
    position: WorkerPosition
    batch: Batch | None
    num_seen: int
    skips: list[Skip]
    bytes_read: int = 0
    failure: str | None = None

    def pin_memory(self) -> Delivery:
        """Called by the DataLoader, in CUDA runs, so that copies to the device need not wait."""
        if self.batch is not None:
            for name in ("waveforms", "waveform_lengths", "frames", "targets", "audio_present", "video_present"):
                tensor = getattr(self.batch, name)
                if tensor is not None:
                    setattr(self.batch, name, tensor.pin_memory())
        return self


@dataclass(eq=False)
class Deliveries(IterableDataset):
    """The workers' side: each process iterates a copy of this.

    Attributes:
        views: batches made of each decoded one, with other seeds.
        clip_seconds_limit: how long a clip may take to decode, s.
        positions: where each worker of this rank begins; ``next_worker`` is the first to have its turn.
        history: what other numbers of readers have consumed, see :mod:`mavil.data.stream.position`.
        desk: shared with the loader: (epoch, consumed) of the clip each worker has in hand.
        deadly: (worker, epoch, consumed) of clips that ended a worker process, and are not tried again.
    """

    shards: ShardSet
    decoder: ClipDecoder
    batch_size: int
    shuffle_buffer: int
    draws: Draws | None
    views: int
    clip_seconds_limit: float
    rank: int
    world_size: int
    positions: list[WorkerPosition]
    next_worker: int = 0
    history: History = ()
    desk: MutableSequence[int] | None = None
    deadly: frozenset[tuple[int, int, int]] = field(default_factory=frozenset)

    def stream(self, worker: int) -> ClipStream:
        """The clips of one worker of this rank."""
        num_workers = len(self.positions)
        return ClipStream(
            self.shards,
            seed=self.decoder.seed,
            training=self.decoder.training,
            shuffle_buffer=self.shuffle_buffer,
            reader=self.rank * num_workers + worker,
            num_readers=self.world_size * num_workers,
            history=self.history,
            draws=self.draws,
        )

    def __iter__(self) -> Iterator[Delivery]:
        process = get_worker_info()
        worker = ((process.id if process else 0) + self.next_worker) % len(self.positions)
        position = self.positions[worker]
        try:
            yield from self._deliver(worker, position, self.stream(worker), in_process=process is None)
        except UserError as error:
            # Handed over as text: an exception that crosses a process boundary arrives buried in its traceback.
            yield Delivery(worker, position, None, 0, [], failure=str(error))

    def _deliver(self, worker: int, start: WorkerPosition, stream: ClipStream, in_process: bool) -> Iterator[Delivery]:
        position = replace(start, num_reports=0, num_views=0, under_way=None)
        reports_done, views_done, windows_done = start.num_reports, start.num_views, start.num_windows
        samples: list[Sample] = []
        skips: list[Skip] = []
        num_seen = bytes_before = 0
        storage = self.shards.storage
        for raw in stream.read(position.epoch, position.consumed):
            made = self._decode(worker, raw, in_process, skips)
            samples += made[windows_done:]
            num_seen += 0 if windows_done else 1  # with its first windows the clip was counted
            windows_done = 0
            while len(samples) >= self.batch_size or len(skips) >= SKIPS_PER_REPORT:
                news = Delivery(worker, position, None, num_seen, skips, storage.bytes_read - bytes_before)
                skips, num_seen, bytes_before = [], 0, storage.bytes_read
                if len(samples) >= self.batch_size:
                    batch, samples = self._stack(samples[: self.batch_size]), samples[self.batch_size :]
                    after = _place_after(raw, len(made), num_left=len(samples))
                    yield from self._views(replace(news, batch=batch), position, after, views_done)
                    position, reports_done, views_done = after, 0, 0
                else:
                    position = replace(position, num_reports=position.num_reports + 1)
                    if position.num_reports > reports_done:
                        yield replace(news, position=position)
        if num_seen or samples or skips:
            rest = self._stack(samples) if samples else None
            yield Delivery(worker, position, rest, num_seen, skips, storage.bytes_read - bytes_before)

    def _stack(self, samples: list[Sample]) -> Batch:
        return stack_samples(samples, self.decoder.vocabulary, self.decoder.blanks)

    def _views(
        self, first: Delivery, before: WorkerPosition, after: WorkerPosition, num_done: int
    ) -> Iterator[Delivery]:
        """The batch as it is, then again with other seeds; clips and bytes are counted with the first that is handed over.

        Views of a clip never meet in a batch: there they would be each other's false negatives.
        """
        assert first.batch is not None
        for view in range(num_done, self.views):
            is_last = view == self.views - 1
            under_way = replace(before, num_views=view + 1, under_way=(after.epoch, after.consumed))
            batch = first.batch
            if view:
                seeds = [sample_seed(seed, "view", view) for seed in batch.seeds.tolist()]
                batch = replace(batch, seeds=torch.tensor(seeds, dtype=torch.int64))
            news = first if view == num_done else Delivery(first.worker, before, None, 0, [])
            yield replace(news, batch=batch, position=after if is_last else under_way)

    def _decode(self, worker: int, raw: RawClip, in_process: bool, skips: list[Skip]) -> list[Sample]:
        """The samples of a clip; one that cannot be used has none and is added to ``skips``."""
        try:
            return self._decode_in_time(worker, raw, in_process)
        except UnusableClip as verdict:
            skips.append(Skip(verdict.cause, verdict.detail, raw.key, raw.shard))
            return []

    def _decode_in_time(self, worker: int, raw: RawClip, in_process: bool) -> list[Sample]:
        if (worker, raw.epoch, raw.consumed) in self.deadly:
            raise UnusableClip("killed_worker", "decoding it ended its worker process, twice")
        if self.desk is not None:
            self.desk[DESK_FIELDS * worker : DESK_FIELDS * (worker + 1)] = [raw.epoch, raw.consumed]
        try:
            with time_limit(self.clip_seconds_limit, ends_process=not in_process):
                return self.decoder.decode(raw)
        except TimeLimitExceeded:
            raise UnusableClip("timeout", f"decoding it took more than {self.clip_seconds_limit:g} s") from None


def _place_after(raw: RawClip, num_windows: int, num_left: int) -> WorkerPosition:
    """After a batch that ends with a clip, or ``num_left`` windows before its end."""
    if num_left == 0:
        return WorkerPosition(raw.epoch, raw.consumed)
    return WorkerPosition(raw.epoch, raw.consumed - 1, num_windows=num_windows - num_left)
