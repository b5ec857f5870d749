"""The floor: what libav itself needs for a window of a clip, in the straightest loop a fair person would write.

It opens the file once, decodes the sound on one thread through libav's own resampler to 16 kHz mono, jumps to the key frame
before the window, decodes picture after picture on one thread, converts the wanted ones to RGB, and stops. No batch, no tensor,
no check, no policy for odd files: nobody who uses libav without thinking of the codec does with less.
"""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np

from mavil.data.media import FrameWindow, SoundWindow
from mavil.structs import SAMPLE_RATE


def decode_plainly(media: bytes, sound: SoundWindow, frames: FrameWindow, frames_start: float) -> None:
    """Decode both windows and forget them."""
    with av.open(io.BytesIO(media), "r") as container:
        track: Any = container.streams.audio[0]
        track.thread_type, track.codec_context.thread_count = "NONE", 1
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        pieces, missing = [], round((sound.start_seconds + sound.seconds) * SAMPLE_RATE)
        for frame in container.decode(track):
            for piece in resampler.resample(frame):
                pieces.append(piece.to_ndarray())
                missing -= piece.samples
            if missing <= 0:
                break
        np.concatenate(pieces, axis=1)
        _decode_pictures(container, frames, frames_start)


def _decode_pictures(container: av.container.InputContainer, frames: FrameWindow, start: float) -> None:
    track: Any = container.streams.video[0]
    track.thread_type, track.codec_context.thread_count = "NONE", 1
    container.seek(int(start / track.time_base), stream=track)
    waiting, previous, images = list(frames.times(start)[::-1]), None, []
    for frame in container.decode(track):
        while waiting and frame.time > waiting[-1]:
            waiting.pop()
            images.append((previous or frame).to_ndarray(format="rgb24"))
        previous = frame
        if not waiting:
            break
    images += [previous.to_ndarray(format="rgb24") for _ in waiting if previous]
    np.stack(images)
