"""The sound track of an open file to a waveform: mono, 16 kHz, cut to a window of the file's time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import gcd
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph

from mavil.data.media.containers import DecodeError, audio_stream, start_of
from mavil.data.media.limits import MAX_SOUND_BYTES
from mavil.structs import SAMPLE_RATE

# Sound is decoded from this much before a late start: codecs and the resampler need some of it before they are exact.
_SEEK_MARGIN_SECONDS = 0.5
# Matroska counts milliseconds, so after a jump the place in the sound is known to about one, not to the sample. Up to this
# start the sound is therefore counted from the file's beginning, which costs some milliseconds of decoding.
_COARSE_CLOCK_SECONDS = 30.0
# Decoded beyond the wanted end, so that the resampler sees what follows.
_TAIL_SECONDS = 0.05
_PYAV = int(av.__version__.partition(".")[0])


@dataclass(frozen=True)
class SoundWindow:
    """Which sound to take: ``seconds`` from ``start_seconds`` of the file on."""

    start_seconds: float
    seconds: float

    @property
    def decoded_until(self) -> float:
        """Second of the file at which decoding may stop."""
        return self.start_seconds + self.seconds + _TAIL_SECONDS


def read_waveform(container: InputContainer, start_seconds: float, seconds: float) -> np.ndarray:
    """``[L]`` float32 mono at 16 kHz from ``start_seconds`` of the file on; shorter where the file ends earlier.

    Nothing of the container may have been read yet. A sound track that begins later than the file is preceded by
    silence, so that sound and picture stay together. A late start is jumped to; what comes back is what decoding
    everything and cutting would give, sample by sample (in Matroska from 30 s on: to a millisecond).

    Raises:
        DecodeError: ``no_audio``, ``too_large``, or ``too_short``: the sound ends before ``start_seconds``.
    """
    window = SoundWindow(start_seconds, seconds)
    stream = audio_stream(container)
    pieces, first_seconds = _jump_and_decode(container, stream, window)
    if not pieces:
        raise DecodeError("too_short" if start_seconds else "empty", "the sound track has no samples there")
    frame = pieces[0]
    num_interleaved = 1 if frame.format.is_planar else frame.layout.nb_channels
    waveform = _mono(np.concatenate([piece.to_ndarray() for piece in pieces], axis=1), num_interleaved)
    return cut_sound(*resample_sound(waveform, frame.sample_rate, round(first_seconds * frame.sample_rate)), window)


def cut_sound(waveform: np.ndarray, first: int, window: SoundWindow) -> np.ndarray:
    """The window of 16 kHz sound whose sample 0 is number ``first`` of the file, within [-1, 1]; silence before it begins.

    Raises:
        DecodeError: ``too_short``: it ends before the window begins; ``undecodable``: it holds what is no number.
    """
    begin, num_samples = round(window.start_seconds * SAMPLE_RATE) - first, round(window.seconds * SAMPLE_RATE)
    silence = np.zeros(min(max(-begin, 0), num_samples), np.float32)
    placed = np.concatenate([silence, waveform[max(begin, 0) :][:num_samples]])[:num_samples]
    if not len(placed):
        raise DecodeError("too_short", f"the sound ends before {window.start_seconds:g} s")
    if not np.isfinite(placed).all():
        raise DecodeError("undecodable", "its sound holds values that are no numbers")
    return placed.clip(-1.0, 1.0, out=placed)


def _jump_and_decode(container: InputContainer, stream: Any, window: SoundWindow) -> tuple[list[av.AudioFrame], float]:
    """Frames that cover the window, from at least half the margin before it on, and the second at which they begin."""
    target = window.start_seconds - _SEEK_MARGIN_SECONDS
    if target <= 0 or not _can_jump(container, stream, window):
        return _decode_until(container, stream, window.decoded_until)
    with suppress(av.FFmpegError):  # a jump may end amid a packet
        container.seek(int((target + start_of(container)) / stream.time_base), stream=stream)
        pieces, first = _decode_until(container, stream, window.decoded_until)
        if pieces and first <= target + _SEEK_MARGIN_SECONDS / 2:
            return pieces, first
    # The jump failed or went too far, or the track begins late: only reading from the beginning tells.
    container.seek(stream.start_time or 0, stream=stream)
    return _decode_until(container, stream, window.decoded_until)


def _can_jump(container: InputContainer, stream: Any, window: SoundWindow) -> bool:
    """Whether it is known, to the sample, where in the sound a jump arrives."""
    if container.format.name == "ogg" and stream.codec_context.name not in ("opus", "vorbis"):
        return False  # FFmpeg tells wrong times after a jump in FLAC in Ogg, by up to a second
    is_coarse = stream.time_base * (stream.rate or SAMPLE_RATE) > 1
    return not is_coarse or window.start_seconds >= _COARSE_CLOCK_SECONDS


def _decode_until(container: InputContainer, stream: Any, end: float) -> tuple[list[av.AudioFrame], float]:
    pieces: list[av.AudioFrame] = []
    first, num_missing, num_bytes = 0.0, 1, 0
    for frame in container.decode(stream):
        if not pieces:
            first = (frame.time or 0.0) - start_of(container)
            num_missing = round((end - first) * frame.sample_rate)
        pieces.append(frame)
        num_missing -= frame.samples
        num_bytes += 4 * frame.samples * frame.layout.nb_channels
        if num_bytes > MAX_SOUND_BYTES:
            raise DecodeError("too_large", f"its sound takes more than {MAX_SOUND_BYTES} bytes")
        if num_missing <= 0:
            break
    return pieces, first


def _mono(values: np.ndarray, num_interleaved: int) -> np.ndarray:
    """FFmpeg's samples to ``[L]`` float32 in [-1, 1]: the mean of the channels (its own down-mix of floats is a sum)."""
    channels = values.reshape(-1, num_interleaved).T if num_interleaved > 1 else values
    mean = channels.mean(0, dtype=np.float32) if len(channels) > 1 else channels[0].astype(np.float32, copy=False)
    if values.dtype == np.uint8:
        return (mean - 128.0) / 128.0
    full_scale = {"int16": 2.0**15, "int32": 2.0**31}.get(values.dtype.name)
    return mean / np.float32(full_scale) if full_scale else mean


def resample_sound(waveform: np.ndarray, rate: int, first: int) -> tuple[np.ndarray, int]:
    """Mono float32 at ``rate`` Hz to 16 kHz by FFmpeg's band-limited resampler, with the number of its first sample.

    ``first`` is the number of the first sample at ``rate``. Silence is put before it so that both rates have a sample at
    the same moment there: wherever decoding began, the samples at 16 kHz are those of the same moments.
    """
    if rate == SAMPLE_RATE:
        return waveform, first
    num_before = first % (rate // gcd(rate, SAMPLE_RATE))
    graph = Graph()
    if _PYAV >= 18:  # older ones, the last for Python 3.10, cannot be kept from starting a thread per core
        graph.threads = 1
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono")
    graph.link_nodes(source, graph.add("aresample", str(SAMPLE_RATE)), graph.add("abuffersink")).configure()
    aligned = np.pad(waveform, (num_before, 0)) if num_before else waveform
    frame = av.AudioFrame.from_ndarray(aligned[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    graph.push(frame)
    graph.push(None)
    resampled = np.concatenate([piece.to_ndarray()[0] for piece in _pull_all(graph)])
    return resampled, (first - num_before) * SAMPLE_RATE // rate


def _pull_all(graph: Graph) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (EOFError, BlockingIOError):
            return
