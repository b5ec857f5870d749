"""Media files to waveform and frames, and back: the room's front door.

:mod:`~mavil.data.media.containers` opens files, :mod:`~mavil.data.media.decoders` holds the back ends (with ``sound_track``
and ``picture_track`` beneath), :mod:`~mavil.data.media.encoders` writes. Whoever needs media imports from here.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from mavil.data.media.containers import CONVERTED_ENDINGS, MEDIA_ENDINGS, Cause, DecodeError, MediaInfo, probe
from mavil.data.media.decoders import Backend, DecordBackend, PyAVBackend, TorchcodecBackend
from mavil.data.media.encoders import cut_clip, encode_clip
from mavil.data.media.picture_track import FrameWindow
from mavil.data.media.sound_track import SoundWindow
from mavil.structs import UserError

__all__ = [
    "CONVERTED_ENDINGS",
    "MEDIA_ENDINGS",
    "Cause",
    "DecodeError",
    "FrameWindow",
    "MediaInfo",
    "SoundWindow",
    "cut_clip",
    "decode_audio",
    "decode_clip",
    "decode_frames",
    "encode_clip",
    "probe",
]

BACKENDS: dict[str, type[Backend]] = {"pyav": PyAVBackend, "torchcodec": TorchcodecBackend, "decord": DecordBackend}
"""Decoders by their name in ``data.backend``; only the chosen one is imported."""


def decode_clip(
    media: bytes | str,
    sound: SoundWindow | None,
    frames: FrameWindow | None,
    frames_start: float = 0.0,
    backend: str = "pyav",
) -> tuple[Tensor | None, Tensor | None]:
    """The sound and the frames of a file, each as wanted: what :func:`decode_audio` and :func:`decode_frames` return.

    ``media`` are the file's bytes, or its path: then only the parts that are needed are read (PyAV). Asking for both at once
    saves opening the file twice.

    Raises:
        DecodeError: see there.
        UserError: the back end is unknown or not installed.
    """
    waveform, images = _backend(backend).decode(media, sound, frames, frames_start)
    return (
        None if waveform is None else torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)),
        None if images is None else torch.from_numpy(images),
    )


def decode_audio(media: bytes, seconds: float, backend: str = "pyav", start_seconds: float = 0.0) -> Tensor:
    """``[L]`` float32 in [-1, 1], mono (channel mean), 16 kHz: ``seconds`` of a file, less if it is shorter.

    A late start is jumped to; the sound is the same, sample by sample, as that cut from the whole
    (:mod:`mavil.data.media.sound_track` has the one exception).

    Raises:
        DecodeError: ``no_audio``, ``empty``, ``undecodable``, ``too_large``, or ``too_short``: it ends before its start.
        UserError: the back end is unknown or not installed.
    """
    waveform, _ = decode_clip(media, SoundWindow(start_seconds, seconds), None, backend=backend)
    assert waveform is not None
    return waveform


def decode_frames(media: bytes, window: FrameWindow, start_seconds: float = 0.0, backend: str = "pyav") -> Tensor:
    """``[T, 3, H, Wd]`` uint8 RGB: frame i is the one on screen at ``start_seconds + i / frames_per_second``.

    Past its end a clip is read again from its beginning [source AV-SUPERB copy, which loops short clips]. Frames are
    turned upright, and shrunk (aspect kept) where their short side is larger than the window's; never enlarged.

    Raises:
        DecodeError: ``no_video``, ``empty``, ``undecodable`` or ``too_large``.
        UserError: the back end is unknown or not installed.
    """
    _, frames = decode_clip(media, None, window, start_seconds, backend)
    assert frames is not None
    return frames


@cache
def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise UserError(f"data.backend={name} is no media decoder: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]()
