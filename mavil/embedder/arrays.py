"""Sound and pictures that are already in memory, checked and brought to what the decoders give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavil.data.media.limits import MAX_CHANNELS, SAMPLE_RATES
from mavil.data.media.picture_track import shrunk
from mavil.data.media.sound_track import resample_sound
from mavil.structs import SAMPLE_RATE, UserError

LOUDEST = 4.0
"""Full scale is 1, and resampling overshoots it by little; integer samples made floating-point are in the thousands."""


def mono_sound(sound: Any, rate: float | None, name: str) -> Tensor:
    """``[L]`` float32 in [-1, 1] at 16 kHz from ``[L]`` or ``[C, L]`` at ``rate`` Hz, as from a file of the same samples.

    Args:
        sound: floating-point tensor or array; channels are averaged, what exceeds full scale is cut, as in files.
        rate: Hz.
        name: what to call it in messages.

    Raises:
        UserError: another type or shape, no rate or an impossible one, no samples, NaN, or samples far beyond full scale.
    """
    values = as_tensor(sound, name, "sound")
    if not values.is_floating_point():
        raise UserError(
            f"{name}: sound of type {_type_of(values)}: give floating-point samples in [-1, 1]; divide 16-bit ones by 32768"
        )
    if values.ndim not in (1, 2) or (values.ndim == 2 and len(values) > MAX_CHANNELS):
        raise UserError(
            f"{name}: sound of shape {list(values.shape)}: give [samples] or [channels, samples], a list for several clips"
        )
    if rate is None:
        raise UserError(f"{name}: the rate of the sound is not known: give rate=, in Hz, e.g. rate=16000")
    if not _is_number(rate) or not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1] or rate != int(rate):
        raise UserError(f"{name}: rate={rate!r}: give samples per second, a whole number from 100 to 768000")
    if not values.numel():
        raise UserError(f"{name}: the sound has 0 samples: leave it out")
    waveform = values.float() if values.ndim == 1 else values.float().mean(dim=0)
    low, high = (float(value) for value in waveform.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{name}: the sound has samples that are NaN or infinite: mend it, or leave it out")
    if max(-low, high) > LOUDEST:
        raise UserError(
            f"{name}: the sound reaches from {low:g} to {high:g}: samples lie in [-1, 1]; divide 16-bit ones by 32768"
        )
    if int(rate) != SAMPLE_RATE:
        resampled, _ = resample_sound(waveform.numpy(), int(rate), 0)
        waveform = torch.from_numpy(np.ascontiguousarray(resampled))
    return waveform.clamp(-1.0, 1.0)


def film_frames(film: Any, frames_per_second: float | None, name: str) -> tuple[Tensor, float]:
    """``[T, H, Wd, 3]`` uint8 as it was given, and its rate, Hz.

    Raises:
        UserError: another type or shape, no rate or an impossible one, no frames.
    """
    values = as_tensor(film, name, "film")
    if values.ndim != 4 or values.shape[3] != 3 or values.dtype != torch.uint8:
        raise UserError(
            f"{name}: a film of shape {list(values.shape)} and type {_type_of(values)}: give [frames, rows, columns, 3] of "
            "uint8 RGB, a list for several clips"
        )
    if not values.numel():
        raise UserError(f"{name}: the film of shape {list(values.shape)} is empty: leave it out")
    if frames_per_second is None:
        raise UserError(f"{name}: the rate of the film is not known: give frames_per_second=, e.g. 25")
    if not _is_number(frames_per_second) or not 0 < frames_per_second <= 1000:
        raise UserError(f"{name}: frames_per_second={frames_per_second!r}: give a number above 0, at most 1000")
    return values, float(frames_per_second)


def frames_at(film: Tensor, rate: float, times: np.ndarray, short_side: int) -> Tensor:
    """``[T, 3, H, Wd]`` uint8: those of ``film`` ``[n, H, Wd, 3]`` on screen at ``times`` (s), shrunk as the decoder does."""
    places = np.floor(times * rate).astype(np.int64).clip(0, len(film) - 1)
    return torch.from_numpy(shrunk(film[torch.from_numpy(places)].numpy(), short_side))


def as_tensor(values: Any, name: str, what: str) -> Tensor:
    """A tensor or numpy array as a tensor on the CPU without gradient.

    Raises:
        UserError: it is neither.
    """
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(values))
    kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
    raise UserError(f"{name}: {kind} is no {what}: give a path, a torch tensor or a numpy array, or a list of these")


def _type_of(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
