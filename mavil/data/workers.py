"""The workers' side of the loader: each worker process turns its share of the clips into batches and hands them over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch.utils.data import IterableDataset, get_worker_info

from mavil.data.samples import ClipDecoder, UnusableClip, stack_samples
from mavil.data.skips import Skip
from mavil.data.stream import ClipStream, RawClip, ShardFile
from mavil.structs import Batch, Sample, UserError

SKIPS_PER_REPORT = 16
"""A worker that leaves out this many clips says so before its batch is full, so that hopeless data ends the run."""


@dataclass(frozen=True)
class WorkerPosition:
    """Where one worker is: the clips it has consumed of an epoch, up to the end of its last batch.

    ``num_reports`` counts reports without a batch since then; they are turns too, and are not repeated on continuing.
    """

    epoch: int = 0
    consumed: int = 0
    num_reports: int = 0


@dataclass
class Delivery:
    """What a worker hands over in one turn: a batch, or only a report, or (``failure``) the reason why it stopped."""

    worker: int
    position: WorkerPosition
    batch: Batch | None
    num_seen: int
    skips: list[Skip]
    failure: str | None = None

    def pin_memory(self) -> Delivery:
        """Called by the DataLoader, in CUDA runs, so that copies to the device need not wait."""
        if self.batch is not None:
            for name in ("waveforms", "waveform_lengths", "frames", "targets"):
                tensor = getattr(self.batch, name)
                if tensor is not None:
                    setattr(self.batch, name, tensor.pin_memory())
        return self


@dataclass(eq=False)
class Deliveries(IterableDataset):
    """The workers' side: each process iterates a copy of this."""

    shards: list[ShardFile]
    decoder: ClipDecoder
    batch_size: int
    shuffle_buffer: int
    rank: int
    world_size: int
    positions: list[WorkerPosition]
    next_worker: int = 0

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
        )

    def __iter__(self) -> Iterator[Delivery]:
        process = get_worker_info()
        if process is not None:
            # Ctrl-C reaches the whole terminal group; the training process decides when its workers end.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        worker = ((process.id if process else 0) + self.next_worker) % len(self.positions)
        position = self.positions[worker]
        try:
            yield from self._deliver(worker, position, self.stream(worker).read(position.epoch, position.consumed))
        except UserError as error:
            # Handed over as text: an exception that crosses a process boundary arrives buried in its traceback.
            yield Delivery(worker, position, None, 0, [], failure=str(error))

    def _deliver(self, worker: int, start: WorkerPosition, clips: Iterator[RawClip]) -> Iterator[Delivery]:
        position = replace(start, num_reports=0)
        already_reported = start.num_reports
        samples: list[Sample] = []
        skips: list[Skip] = []
        num_seen = 0
        for raw in clips:
            num_seen += 1
            try:
                samples.append(self.decoder.decode(raw))
            except UnusableClip as verdict:
                skips.append(Skip(verdict.cause, verdict.detail, raw.key, raw.shard))
            if len(samples) == self.batch_size:
                position, already_reported = WorkerPosition(raw.epoch, raw.consumed), 0
                batch, samples = stack_samples(samples, self.decoder.vocabulary), []
                yield Delivery(worker, position, batch, num_seen, skips)
            elif len(skips) == SKIPS_PER_REPORT:
                position = replace(position, num_reports=position.num_reports + 1)
                if position.num_reports > already_reported:
                    yield Delivery(worker, position, None, num_seen, skips)
            else:
                continue
            skips, num_seen = [], 0
        if num_seen:
            rest = stack_samples(samples, self.decoder.vocabulary) if samples else None
            yield Delivery(worker, position, rest, num_seen, skips)
