"""Clips per second of the floor, of each decoder and of the whole loader, measured in turn in one run.

Machines are noisy and get slower as they get warmer or shared, so every contender runs for a moment in each round, and is
compared with the floor of the same round. Two rates are told: by the clock, and by the time used on cores ("per core"), which
other people's programs disturb less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

import numpy as np

from mavil.data.loading.loader import Loader
from mavil.data.media import BACKENDS, FrameWindow, SoundWindow, decode_clip, probe
from mavil.structs import Batch, UserError
from tools.benchmarks.floor import decode_plainly
from tools.benchmarks.processes import cpu_seconds, wait_until_idle, worker_pids

FLOOR = "floor: libav alone"
PREFETCHED = 2
"""Batches that each worker of a DataLoader prepares ahead: torch's own default."""


@dataclass
class Rate:
    """One contender: clips per second by the clock and by core time, round by round."""

    name: str
    by_clock: list[float] = field(default_factory=list)
    per_core: list[float] = field(default_factory=list)

    def summary(self, floor: Rate) -> dict[str, object]:
        """Medians over the rounds; percents are of the floor in the same round."""
        shares = [100 * mine / theirs for mine, theirs in zip(self.per_core, floor.per_core, strict=True)]
        by_clock = [100 * mine / theirs for mine, theirs in zip(self.by_clock, floor.by_clock, strict=True)]
        return {
            "name": self.name,
            "clips_per_second": median(self.by_clock),
            "percent_of_floor_by_clock": median(by_clock),
            "clips_per_second_per_core": median(self.per_core),
            "percent_of_floor": median(shares),
            "percent_of_floor_lowest": min(shares),
            "percent_of_floor_highest": max(shares),
            "rounds": {"clips_per_second": self.by_clock, "clips_per_second_per_core": self.per_core},
        }


class Contender:
    """Something that gets through clips. ``advance`` does so for a moment and returns how many."""

    def __init__(self, name: str, advance: Callable[[], int], pids: set[int], prepare: Callable[[], object]) -> None:
        self.rate = Rate(name)
        self._advance, self._pids, self._prepare = advance, pids, prepare

    def run(self) -> None:
        """One round."""
        self._prepare()
        clock, core = time.perf_counter(), cpu_seconds(self._pids)
        num_clips = self._advance()
        core_used = cpu_seconds(self._pids) - core
        self.rate.by_clock.append(num_clips / (time.perf_counter() - clock))
        self.rate.per_core.append(num_clips / max(core_used, 1e-9))
        wait_until_idle(self._pids)


def decoders(clips: Sequence[bytes], audio_seconds: float, window: FrameWindow) -> list[Contender]:
    """The floor and every back end that is installed, each over all clips, with the same random windows."""
    spans = [max(0.0, probe(m).duration_seconds - window.num_frames / window.frames_per_second) for m in clips]
    starts = (np.random.default_rng(0).uniform(size=len(clips)) * spans).tolist()
    sound = SoundWindow(0.0, audio_seconds)

    def over_clips(decode: Callable[[bytes, float], object]) -> Callable[[], int]:
        def advance() -> int:
            for media, start in zip(clips, starts, strict=True):
                decode(media, start)
            return len(clips)

        return advance

    found = [Contender(FLOOR, over_clips(lambda m, start: decode_plainly(m, sound, window, start)), set(), bool)]
    for backend in BACKENDS:
        try:
            decode_clip(clips[0], None, None, backend=backend)
        except UserError:
            continue
        decode = over_clips(lambda m, start, name=backend: decode_clip(m, sound, window, start, name))  # type: ignore[misc]
        found.append(Contender(f"decode, {backend}", decode, set(), bool))
    return found


def loader_contender(build: Callable[[int], Loader], num_workers: int, num_clips: int) -> Contender:
    """The whole loader with so many workers; a round is about ``num_clips`` clips, in whole batches."""
    before = worker_pids()
    batches: Iterator[Batch] = iter(build(num_workers))
    batch_size = len(next(batches))
    num_batches = max(1, round(num_clips / batch_size)) * max(1, num_workers)

    def advance() -> int:
        return sum(len(batch) for batch in islice(batches, num_batches))

    def use_up_prefetched() -> None:
        for _ in islice(batches, PREFETCHED * num_workers):
            pass

    pids = worker_pids() - before
    wait_until_idle(pids)
    name = f"loader, {num_workers} worker{'' if num_workers == 1 else 's'}"
    return Contender(name, advance, pids, use_up_prefetched)


def measure_rates(contenders: Sequence[Contender], num_rounds: int) -> list[dict[str, object]]:
    """A summary per contender; the first is the floor. One more round before the others is thrown away."""
    for number in range(num_rounds + 1):
        for contender in contenders:
            contender.run()
        if number == 0:
            for contender in contenders:
                contender.rate.by_clock.clear()
                contender.rate.per_core.clear()
    return [contender.rate.summary(contenders[0].rate) for contender in contenders]
