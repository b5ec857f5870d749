"""How fast clips become embeddings, against what decoding alone and the encoders alone take, and what cheaper numbers cost.

All contenders take turns on the same clips: this machine may be busy, and a ratio of the same round is what can be compared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mavil.commands.embed import wanted_of
from mavil.embedder.bulk import BulkEmbedder, Work, encoder_of
from mavil.embedder.bulk_decoding import LOOK_AHEAD_PER_WORKER, Piece, Wanted, decoded
from mavil.embedder.bulk_inputs import Found
from mavil.embedder.embedder import Embedder
from mavil.embedder.stored import read_embeddings
from mavil.embedder.stored_parts import PartWriter, Settings
from mavil.engine.precision import autocast
from mavil.evaluation.retrieval import both_directions
from mavil.models.tokens import patchify
from mavil.structs import Modality, Sample, UserError

DECODE, ENCODE, WHOLE = "floor: decoding alone", "floor: encoders alone", "mavil embed"


@dataclass
class Rates:
    """Clips per second of one contender, round by round."""

    name: str
    rounds: list[float] = field(default_factory=list)


class SomeClips:
    """The first clips of an input, read once and kept: what all contenders are given."""

    def __init__(self, found: Sequence[Found]) -> None:
        self.found = list(found)

    def __len__(self) -> int:
        return len(self.found)

    def digest(self) -> str:
        """They do not change."""
        return "benchmark"

    def read(self, first: int, stop: int) -> Iterator[Found]:
        """See :class:`mavil.embedder.bulk_inputs.AllClips`."""
        yield from self.found[first:stop]


class Job(NamedTuple):
    """What is measured: these clips, this model, so many windows at once and decoding processes, by this clock (s)."""

    model: Embedder
    clips: SomeClips
    batch: int
    workers: int
    clock: Callable[[], float] = time.perf_counter

    def by_core(self) -> Job:
        """All of it in this process, by what it uses of any core: a busy machine changes that little."""
        return self._replace(workers=0, clock=time.process_time)

    def now(self) -> float:
        """By the clock, once the device has done what it was asked for."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return self.clock()


def measure_throughput(job: Job, rounds: int) -> list[dict[str, Any]]:
    """Medians over ``rounds``: decoding alone, encoders alone, and all of ``mavil embed``, writing included.

    The start of the worker processes does not count: the clock begins when as many clips have come as may be handed out ahead.
    Clips are done a batch at a time, so that some must be left behind those.

    Raises:
        UserError: too few clips for that, or one that cannot be decoded.
    """
    ahead = job.workers * LOOK_AHEAD_PER_WORKER
    needed = ahead + max(ahead, job.batch) if ahead else 0
    if len(job.clips) <= needed:
        raise UserError(
            f"{len(job.clips)} clips: more than {needed} are needed to measure with {job.workers} workers and batches of "
            f"{job.batch}; take more with --clips, a smaller --batch or fewer --workers"
        )
    pieces = _decoded_here(job)
    contenders: dict[str, Callable[[], float]] = {
        DECODE: lambda: _rate(job, _decoding(job), ahead),
        ENCODE: lambda: len(job.clips) / _encoding_seconds(job, pieces),
        WHOLE: lambda: _whole(job, ahead),
    }
    rates = [Rates(name) for name in contenders]
    for number in range(rounds + 1):
        for one in rates:
            rate = contenders[one.name]()
            if number:  # the first round warms up
                one.rounds.append(rate)
    return [_summary(one, rates) for one in rates]


def _summary(one: Rates, rates: Sequence[Rates]) -> dict[str, Any]:
    """Percents are of the floors in the same round; ``both``: decoding and encoding one after the other on the same cores."""
    decode, encode = rates[0].rounds, rates[1].rounds
    both = [1 / (1 / d + 1 / e) for d, e in zip(decode, encode, strict=True)]
    floors = {"decode": decode, "encode": encode, "both": both}
    shares = {
        f"percent_of_{name}": median(100 * a / b for a, b in zip(one.rounds, floor, strict=True))
        for name, floor in floors.items()
    }
    return {"name": one.name, "clips_per_second": median(one.rounds), **shares, "rounds": one.rounds}


def _whole(job: Job, ahead: int) -> float:
    with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        settings = settings_of(job)
        writer = PartWriter(Path(temporary) / "out", settings)
        writer.begin()
        bulk = BulkEmbedder(
            job.clips,  # type: ignore[arg-type]
            settings,
            wanted_of(job.model, settings),
            encoder_of(job.model),
            writer,
            Work(job.batch, job.workers),
        )
        return _rate(job, bulk.run(range(settings.num_parts)), ahead)


def settings_of(job: Job, rows: str = "clips") -> Settings:
    """As ``mavil embed --mean`` would have them, in one part."""
    model = job.model
    return Settings(
        model=model.source,
        checkpoint="newest",
        weights_digest="benchmark",
        modalities=dict(model.width),
        rows=rows,
        window_seconds=dict(model.window_seconds),
        hop_seconds=None,
        precision="float32",
        inputs=[],
        inputs_digest=job.clips.digest(),
        clips_listed=len(job.clips),
        clips_per_part=len(job.clips),
        file_format="safetensors",
    )


def _rate(job: Job, done: Iterator[int], ahead: int) -> float:
    """Clips/s from the moment when ``ahead`` are done; ``done`` counts them."""
    began, before = job.clock(), 0
    for count in done:
        if before == 0 and ahead and count >= ahead:
            began, before = job.clock(), count
    return (len(job.clips) - before) / (job.clock() - began)


def _decoding(job: Job) -> Iterator[int]:
    """Clips done so far."""
    unfinished: dict[int, int] = {}
    done = 0
    for piece in decoded(enumerate(job.clips.found), _wanted(job), job.workers, 60.0):
        left = unfinished.pop(piece.number, piece.num_windows) - len(piece.places)
        if left:
            unfinished[piece.number] = left
        done += not left
        yield done


def _wanted(job: Job) -> Wanted:
    return wanted_of(job.model, settings_of(job))


def _decoded_here(job: Job) -> list[Piece]:
    pieces = list(decoded(enumerate(job.clips.found), _wanted(job), 0, 60.0))
    for piece in pieces:
        if piece.reject is not None:
            raise UserError(f"{piece.found.source}: {piece.reject.detail}: take other clips to measure with")
    return pieces


def _encoding_seconds(job: Job, pieces: Sequence[Piece]) -> float:
    """What the encoders take for all windows of all clips, from inputs that are ready, in batches as everywhere."""
    encoder = job.model.encoder
    seconds = 0.0
    for modality, samples in _samples(pieces).items():
        for first in range(0, len(samples), job.batch):
            inputs = encoder.inputs(samples[first : first + job.batch], (modality,))
            began = job.now()
            with torch.no_grad(), autocast(encoder.device, encoder.precision):
                patches = patchify(inputs.of(modality), encoder.model.grid(modality))
                encoder.model.pool(modality, encoder.model.encoder(modality)(patches))
            seconds += job.now() - began
    return seconds


def _samples(pieces: Sequence[Piece]) -> dict[Modality, list[Sample]]:
    found: dict[Modality, list[Sample]] = {}
    for piece in pieces:
        for place, array in zip(piece.places, piece.arrays, strict=True):
            values = torch.from_numpy(array)
            sample = Sample("", 0, values, None) if place.modality == "audio" else Sample("", 0, None, values)
            found.setdefault(place.modality, []).append(sample)
    return found


def measure_variants(variants: dict[str, Embedder], clips: SomeClips, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Of each precision: how fast the encoders are against the first one, how far embeddings move, and R@1 both ways.

    The gallery are the clips that have both modalities; R@1 is ``None`` where fewer than two do.

    Raises:
        UserError: a clip that cannot be decoded.
    """
    jobs = {name: Job(model, clips, batch, 0) for name, model in variants.items()}
    if all(model.device.type == "cpu" for model in variants.values()):
        jobs = {name: job.by_core() for name, job in jobs.items()}
    first = next(iter(jobs.values()))
    pieces = _decoded_here(first)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            spent = _encoding_seconds(job, pieces)
            if number:
                seconds[name].append(spent)
    embeddings = {name: _embeddings(job) for name, job in jobs.items()}
    reference = next(iter(jobs))
    rows = []
    for name in jobs:
        faster = median(a / b for a, b in zip(seconds[reference], seconds[name], strict=True))
        row: dict[str, Any] = {
            "precision": name,
            "clips_per_second": len(clips) / median(seconds[name]),
            "times_as_fast": faster,
        }
        row["lowest_cosine"] = min(
            float((embeddings[name][m] * embeddings[reference][m]).sum(dim=1).min()) for m in embeddings[name]
        )
        rows.append({**row, **_recalls(embeddings[name])})
    return rows


def _recalls(embeddings: dict[str, Tensor]) -> dict[str, Any]:
    if len(embeddings) < 2 or len(embeddings["audio"]) < 2:
        return {"gallery": 0}
    ways = both_directions(embeddings["audio"], embeddings["video"])
    return {"gallery": len(embeddings["audio"]), **{way: ways[way]["recall_at_1_percent"] for way in ways}}


def _embeddings(job: Job) -> dict[str, Tensor]:
    """``[n, Z]`` by modality of the clips that have all of them."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        settings, out = settings_of(job), Path(temporary) / "out"
        writer = PartWriter(out, settings)
        writer.begin()
        wanted, work = wanted_of(job.model, settings), Work(job.batch, 0)
        bulk = BulkEmbedder(job.clips, settings, wanted, encoder_of(job.model), writer, work)  # type: ignore[arg-type]
        for _ in bulk.run(range(settings.num_parts)):
            pass
        writer.finish()
        stored = read_embeddings(out)
        complete = np.logical_and.reduce(list(stored.present.values()))
        return {m: torch.from_numpy(np.array(values[complete])) for m, values in stored.values.items()}
