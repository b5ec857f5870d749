"""WAV files of a task folder as waveforms at the model's sample rate, read ahead of the model."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor
from torchaudio.functional import resample

from mavil.structs import UserError

READERS = 4
_FULL_SCALE = {"i2": 1 << 15, "i4": 1 << 31, "u1": 1 << 7}
"""Of whole numbers; scipy hands out 24 bits as the upper ones of 32."""
_T = TypeVar("_T")
_R = TypeVar("_R")


def read_wav(path: Path, expected_hz: int, wanted_hz: int) -> Tensor:
    """``[samples]`` float32 in [-1, 1], resampled if the two rates differ.

    Raises:
        UserError: it is no WAV file, has another sample rate than its folder says, several channels, no sample, or one that
            is not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks with comments that it does not know
            rate, samples = wavfile.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{path}: no WAV file that can be read ({error}); unpack the task again") from None
    if rate != expected_hz:
        raise UserError(f"{path}: has {rate} Hz, its folder says {expected_hz}")
    if samples.ndim != 1 or not len(samples):
        raise UserError(f"{path}: shape {samples.shape}, one channel with at least one sample is expected")
    waveform = torch.from_numpy(_scaled(samples))
    if not waveform.isfinite().all():
        raise UserError(f"{path}: has samples that are not finite")
    return waveform if rate == wanted_hz else resample(waveform, rate, wanted_hz)


def ahead(function: Callable[[_T], _R], items: Iterable[_T], depth: int = 2 * READERS) -> Iterator[_R]:
    """``map`` in threads, in order, at most ``depth`` results ahead: all clips of a task may not fit into memory."""
    waiting: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _scaled(samples: np.ndarray) -> np.ndarray:
    kind = f"{samples.dtype.kind}{samples.dtype.itemsize}"
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    zero = 128.0 if kind == "u1" else 0.0
    return ((samples.astype(np.float64) - zero) / _FULL_SCALE[kind]).astype(np.float32)
