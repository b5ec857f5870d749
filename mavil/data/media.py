"""Media files to waveform and frames, and back: the room's front door.

:mod:`~mavil.data.containers` opens files, :mod:`~mavil.data.decoders` holds the back ends, :mod:`~mavil.data.encoders`
writes. Whoever needs media imports from here.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from mavil.data.containers import CONVERTED_ENDINGS, MEDIA_ENDINGS, Cause, DecodeError, MediaInfo, probe
from mavil.data.decoders import Backend, DecordBackend, FrameWindow, PyAVBackend, TorchcodecBackend
from mavil.data.encoders import cut_clip, encode_clip
from mavil.structs import UserError

__all__ = [
    "CONVERTED_ENDINGS",
    "MEDIA_ENDINGS",
    "Cause",
    "DecodeError",
    "FrameWindow",
    "MediaInfo",
    "cut_clip",
    "decode_audio",
    "decode_frames",
    "encode_clip",
    "probe",
]

BACKENDS: dict[str, type[Backend]] = {"pyav": PyAVBackend, "torchcodec": TorchcodecBackend, "decord": DecordBackend}
"""Decoders by their name in ``data.backend``; only the chosen one is imported."""


def decode_audio(media: bytes, seconds: float, backend: str = "pyav") -> Tensor:
    """``[L]`` float32 in [-1, 1], mono (channel mean), 16 kHz: the first ``seconds`` of a file, less if it is shorter.

    Raises:
        DecodeError: ``no_audio``, ``empty`` or ``undecodable``.
        UserError: the back end is unknown or not installed.
    """
    return torch.from_numpy(np.ascontiguousarray(_backend(backend).waveform(media, seconds), dtype=np.float32))


def decode_frames(media: bytes, window: FrameWindow, start_seconds: float = 0.0, backend: str = "pyav") -> Tensor:
    """``[T, 3, H, Wd]`` uint8 RGB: frame i is the one on screen at ``start_seconds + i / frames_per_second``.

    Past its end a clip is read again from its beginning [source AV-SUPERB copy, which loops short clips]. Frames are
    turned upright, and shrunk (aspect kept) where their short side is larger than the window's; never enlarged.

    Raises:
        DecodeError: ``no_video``, ``empty`` or ``undecodable``.
        UserError: the back end is unknown or not installed.
    """
    images = torch.from_numpy(_backend(backend).frames(media, window, start_seconds))
    return images.permute(0, 3, 1, 2).contiguous()  # [T, H, Wd, 3] -> [T, 3, H, Wd]


@cache
def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise UserError(f"data.backend={name} is no media decoder: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]()
