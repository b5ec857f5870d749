"""Measuring the sound of a set of shards: mean and deviation of its log-mel values, over worker processes.

Measured by the front end of training, before normalisation and augmentation, over the true steps of every clip; padding is
left out. AST's sample script, where the field's constants come from, averages whole padded spectrograms instead, batch by
batch, and takes the mean of the batches' deviations [source]: padding is zero there, which draws the mean towards zero, by
2.5 % for 10-s clips in 1024 steps and by more for short clips. Every step counts the same, so long clips count for more.
"""

from __future__ import annotations

import functools
import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mavil.data.isolation import map_isolated
from mavil.data.media import DecodeError, decode_audio
from mavil.data.media.containers import audio_stream, open_media
from mavil.data.shards.clip_table import read_rows
from mavil.data.shards.index import ShardIndex, read_index
from mavil.data.shards.statistics import FrontEnd, LogMel, Statistics, write_measurement
from mavil.data.spectrogram import SpectrogramKind, log_mel, mel_filter_bank, num_spectrogram_steps
from mavil.seeds import sample_seed
from mavil.structs import SAMPLE_RATE, UserError

LONGEST_SECONDS = 60.0
"""Of a longer clip only so much is measured, which bounds the memory [our choice]."""
CLIPS_PER_BLOCK = 32
SECONDS_PER_BLOCK, SECONDS_PER_CLIP = 120.0, 30.0
"""A block that takes longer is measured again clip by clip; a clip that takes longer is left out [our choice]."""
SMALLEST_STD = 1e-3
"""Less than this is rounding: all clips are digital silence."""


def measure_statistics(
    folder: Path,
    *,
    num_mel_bins: int = 128,
    spectrogram: SpectrogramKind = "kaldi_hann",
    clips: int | None = None,
    seed: int = 0,
    workers: int = 0,
    show_progress: bool = True,
) -> Statistics:
    """Measure the log-mel values of a folder of shards and write ``stats.json``; the same numbers for any ``workers``.

    Earlier measurements of the same shards with other front ends are kept.

    Args:
        folder: the shards, on this machine.
        num_mel_bins, spectrogram: as training will use.
        clips: measure so many, drawn at random with ``seed``, instead of all.
        seed: of that draw.
        workers: processes; 0 measures in this one, where a decoder that hangs or crashes is not survived.
        show_progress: draw a progress bar.

    Raises:
        UserError: as :func:`mavil.data.shards.index.read_index`; no sound that can be measured; or the file cannot be
            written.
    """
    index = read_index(folder)
    drawn = None if clips is None or clips >= index.num_clips else clips
    blocks = _blocks(index, drawn, seed)
    tally = _Tally()
    measure_block = functools.partial(_measure_block, num_mel_bins=num_mel_bins, spectrogram=spectrogram)
    for part in _measure(blocks, measure_block, workers, show_progress):
        tally.add(part)
    return write_measurement(index, tally.result(folder, (spectrogram, num_mel_bins), drawn, seed))


@dataclass(frozen=True)
class _Block:
    """Clips of one shard: ``places`` ``[clips, 2]`` int64 are offset and size of each one's media file, bytes."""

    shard: Path
    places: np.ndarray

    def one_by_one(self) -> list[_Block]:
        return [_Block(self.shard, place[None]) for place in self.places]


@dataclass
class _Tally:
    """Sums in float64; parts are added in the order of the shards, so that the result has the same bits every time."""

    total: float = 0.0
    total_squares: float = 0.0
    num_values: int = 0
    num_clips: int = 0
    num_samples: int = 0
    num_silent: int = 0
    shortest: float = math.inf
    longest: int = 0
    sample_rates: Counter[int] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, part: _Tally) -> None:
        self.total += part.total
        self.total_squares += part.total_squares
        self.num_values += part.num_values
        self.num_clips += part.num_clips
        self.num_samples += part.num_samples
        self.num_silent += part.num_silent
        self.shortest = min(self.shortest, part.shortest)
        self.longest = max(self.longest, part.longest)
        self.sample_rates.update(part.sample_rates)
        self.left_out.update(part.left_out)

    def result(self, folder: Path, front_end: FrontEnd, drawn: int | None, seed: int) -> LogMel:
        if not self.num_clips:
            causes = ", ".join(f"{cause} {count}" for cause, count in sorted(self.left_out.items()))
            raise UserError(f"{folder}: no clip has sound that can be measured ({causes or 'there are no clips'})")
        mean = self.total / self.num_values
        std = math.sqrt(max(0.0, self.total_squares / self.num_values - mean * mean))
        if std < SMALLEST_STD:
            raise UserError(
                f"{folder}: the sound of all {self.num_clips} measured clips is silent: there is nothing to normalise by; "
                "pack clips with sound, or set audio.mean and audio.std in the recipe"
            )
        spectrogram, num_mel_bins = front_end
        return LogMel(
            num_mel_bins=num_mel_bins,
            mean=mean,
            std=std,
            num_clips=self.num_clips,
            seconds=self.num_samples / SAMPLE_RATE,
            num_silent=self.num_silent,
            shortest_seconds=self.shortest / SAMPLE_RATE,
            longest_seconds=self.longest / SAMPLE_RATE,
            sample_rates={str(rate): count for rate, count in sorted(self.sample_rates.items())},
            left_out=dict(sorted(self.left_out.items())),
            drawn=drawn,
            seed=seed,
            spectrogram=spectrogram,
        )


def _blocks(index: ShardIndex, drawn: int | None, seed: int) -> list[_Block]:
    rows = read_rows(index.folder, index.num_clips)
    chosen: Sequence[int] = range(index.num_clips)
    if drawn is not None:
        chosen = sorted(random.Random(sample_seed("statistics", seed)).sample(chosen, drawn))
    blocks, first, end = [], 0, 0
    for shard in index.shards:
        end += shard.num_clips
        stop = bisect_left(chosen, end)
        for begin in range(first, stop, CLIPS_PER_BLOCK):
            mine = rows[list(chosen[begin : min(stop, begin + CLIPS_PER_BLOCK)])]
            places = np.stack([mine["offset"] + mine["media_at"], mine["media_bytes"]], axis=1)
            blocks.append(_Block(index.folder / shard.name, places))
        first = stop
    return blocks


def _measure(
    blocks: list[_Block], measure_block: Callable[[_Block], _Tally], workers: int, show_progress: bool
) -> Iterator[_Tally]:
    outcomes = map_isolated(
        measure_block,
        blocks,
        workers=workers,
        seconds_per_item=SECONDS_PER_BLOCK,
        description=f"measuring sound, {CLIPS_PER_BLOCK} clips at a time",
        show_progress=show_progress,
    )
    for outcome in outcomes:
        if outcome.value is not None:
            yield outcome.value
            continue
        alone = map_isolated(
            measure_block,
            outcome.item.one_by_one(),
            workers=1,
            seconds_per_item=SECONDS_PER_CLIP,
            description="",
            show_progress=False,
        )
        for clip in alone:
            yield clip.value or _Tally(left_out=Counter({clip.failure or "killed": 1}))


def _measure_block(block: _Block, num_mel_bins: int, spectrogram: SpectrogramKind) -> _Tally:
    tally = _Tally()
    with block.shard.open("rb") as file, _on_one_thread():
        for offset, size in block.places.tolist():
            file.seek(offset)
            try:
                tally.add(_measure_clip(file.read(size), size, num_mel_bins, spectrogram))
            except DecodeError as error:
                tally.left_out[error.cause] += 1
    return tally


def _measure_clip(media: bytes, size: int, num_mel_bins: int, spectrogram: SpectrogramKind) -> _Tally:
    if len(media) < size:
        raise DecodeError("undecodable", "the shard ends inside the clip")
    waveform = decode_audio(media, LONGEST_SECONDS)
    length = torch.tensor([len(waveform)])
    if not num_spectrogram_steps(length, spectrogram):
        raise DecodeError("too_short", "its sound is shorter than one window")
    with open_media(media) as container:
        rate = audio_stream(container).rate
    if spectrogram == "kaldi_hann":
        waveform = waveform - waveform.mean()  # as the front end of training does
    filter_bank = _filter_bank(num_mel_bins, spectrogram)
    values = log_mel(waveform[None], length, filter_bank, spectrogram)[0].double()  # [S, M]
    return _Tally(
        total=values.sum().item(),
        total_squares=values.square().sum().item(),
        num_values=values.numel(),
        num_clips=1,
        num_samples=len(waveform),
        num_silent=int(not waveform.any()),
        shortest=len(waveform),
        longest=len(waveform),
        sample_rates=Counter({rate: 1}),
    )


@functools.cache
def _filter_bank(num_mel_bins: int, spectrogram: SpectrogramKind) -> torch.Tensor:
    return mel_filter_bank(num_mel_bins, spectrogram)


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Several would add up in another order, and there may be a worker on every core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
