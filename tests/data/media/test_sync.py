"""Sound and pictures are of the same moment: clips whose flashes and beeps coincide, in every container and back end.

A flash is seen from the first frame on that is shown during the beep, so right means: within one frame, and the beep itself
within 20 ms.
"""

from __future__ import annotations

import functools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mavil.data.loading.samples import ClipDecoder
from mavil.data.media import FrameWindow, cut_clip, decode_audio, decode_clip, probe
from mavil.data.media import SoundWindow as Window
from mavil.data.stream.clips import RawClip
from mavil.structs import SAMPLE_RATE
from tests.data.media.media_files import BRIGHT, DIM, Pictures, Sound, grey, make_media

SECONDS = 60
MOMENTS = [Fraction(moment) for moment in (1, 4, 13, 29, 38, 47, 57)]
"""When flash and beep begin; they last half a second."""
CHECKED = [1, 29, 57]
BEEP_TOLERANCE = 0.02
X264 = {"preset": "veryfast", "crf": "28", "g": "250"}
B_FRAMES = {**X264, "bf": "3", "b_strategy": "0"}
VPX = {"deadline": "realtime", "cpu-used": "8", "b": "200k"}
FILM, NTSC = Fraction(25), Fraction(30_000, 1001)


def _is_on(second: Fraction | float) -> bool:
    return any(moment <= second < moment + Fraction(1, 2) for moment in MOMENTS)


def _flashes(times: list[Fraction], rate: Fraction, options: dict[str, str], **track: object) -> Pictures:
    on, off = grey(BRIGHT, 32, 64), grey(DIM, 32, 64)
    return Pictures([on if _is_on(time) else off for time in times], rate, times, options=options, **track)


def _beeps(rate: int, codec: str = "aac", start: float = 0.0) -> Sound:
    times = start + np.arange(round((SECONDS - start) * rate)) / rate
    on = np.zeros(len(times), np.float32)
    for moment in MOMENTS:
        on[(times >= float(moment)) & (times < float(moment) + 0.5)] = 0.5
    return Sound((on * np.sin(2 * np.pi * 1000 * times))[None], rate, codec=codec, start_seconds=start)


def _regular(rate: Fraction, start: Fraction = Fraction(0)) -> list[Fraction]:
    return [time for time in (number / rate for number in range(int(SECONDS * rate))) if time >= start]


def _irregular() -> list[Fraction]:
    steps = np.random.default_rng(0).choice([17, 33, 34, 40, 100], size=2000)
    times = {Fraction(int(time), 1000) for time in np.cumsum(steps) if time < SECONDS * 1000}
    return sorted({Fraction(0), *times, *MOMENTS, *(moment + Fraction(1, 2) for moment in MOMENTS)})


def _phone(container: str, rate: int) -> bytes:
    return make_media(
        container, _flashes(_irregular(), Fraction(30), B_FRAMES, time_base=Fraction(1, 1000)), _beeps(rate)
    )


FRAGMENTS = {"movflags": "frag_keyframe+delay_moov+default_base_moof"}
FILES = {
    "mp4, 25 Hz, AAC 16 kHz": lambda: make_media("mp4", _flashes(_regular(FILM), FILM, X264), _beeps(SAMPLE_RATE)),
    "mp4, 29.97 Hz, B frames": lambda: make_media("mp4", _flashes(_regular(NTSC), NTSC, B_FRAMES), _beeps(44_100)),
    "mp4 of a phone": lambda: _phone("mp4", 48_000),
    "mkv of a phone, AAC 16 kHz": lambda: _phone("matroska", SAMPLE_RATE),
    "mp4 in fragments": lambda: make_media("mp4", _flashes(_regular(FILM), FILM, B_FRAMES), _beeps(48_000), FRAGMENTS),
    "mov, PCM": lambda: make_media("mov", _flashes(_regular(NTSC), NTSC, X264), _beeps(8000, "pcm_s16le")),
    "webm": lambda: make_media("webm", _flashes(_regular(FILM), FILM, VPX, codec="libvpx"), _beeps(48_000, "libopus")),
    "mp4, late sound": lambda: make_media("mp4", _flashes(_regular(FILM), FILM, B_FRAMES), _beeps(48_000, start=0.7)),
    "mkv, late sound": lambda: make_media(
        "matroska", _flashes(_regular(FILM), FILM, B_FRAMES), _beeps(44_100, start=0.7)
    ),
    "mp4, late pictures": lambda: make_media(
        "mp4", _flashes(_regular(FILM, Fraction(2, 5)), FILM, B_FRAMES), _beeps(48_000)
    ),
    "mkv, late pictures": lambda: make_media(
        "matroska", _flashes(_regular(FILM, Fraction(2, 5)), FILM, B_FRAMES), _beeps(48_000)
    ),
}
WITHOUT_PRIMING = {
    "ts": lambda: make_media("mpegts", _flashes(_regular(FILM), FILM, B_FRAMES), _beeps(48_000)),
    "flv": lambda: make_media("flv", _flashes(_regular(FILM), FILM, B_FRAMES), _beeps(44_100)),
    "avi": lambda: make_media(
        "avi", _flashes(_regular(FILM), FILM, {"qscale": "6"}, codec="mpeg4"), _beeps(44_100, "libmp3lame")
    ),
    "mpg": lambda: make_media("mpeg", _flashes(_regular(FILM), FILM, {}, codec="mpeg2video"), _beeps(44_100, "mp2")),
}
"""Containers that keep what the sound codec put before the first sample: the whole file begins that much earlier."""


@functools.cache
def file_of(name: str) -> bytes:
    return (FILES | WITHOUT_PRIMING)[name]()


def flash_and_beep(media: bytes, moment: float, backend: str) -> tuple[float, float]:
    """Seconds from ``moment`` to the first bright frame and to the first loud sample near it; half a second before is dark."""
    start, window = moment - 0.5, FrameWindow(200, 200.0, 32)
    sound, frames = decode_clip(media, Window(start, 1.0), window, start, backend)
    assert sound is not None
    assert frames is not None
    levels = frames.float().mean((1, 2, 3))
    bright, loud = levels > (DIM + BRIGHT) / 2, sound.abs() > 0.1
    assert not bright[0], "lit too early"
    assert not loud[0], "heard too early"
    assert bright.any()
    assert loud.any()
    return float(bright.int().argmax()) / 200 - 0.5, float(loud.int().argmax()) / SAMPLE_RATE - 0.5


@pytest.mark.parametrize("name", FILES)
def test_flash_and_beep_coincide_all_along_a_minute(name: str, backend: str) -> None:
    media = file_of(name)
    frame_seconds = 0.1 if "phone" in name else 1 / 25
    for moment in CHECKED:
        flash, beep = flash_and_beep(media, moment, backend)
        assert -0.006 <= flash <= frame_seconds + 0.006, (moment, flash)
        assert abs(beep) <= 0.003, (moment, beep)


@pytest.mark.parametrize("name", WITHOUT_PRIMING)
def test_containers_without_an_encoder_delay_shift_both_tracks(name: str) -> None:
    media = file_of(name)
    for moment in CHECKED:
        flash, beep = flash_and_beep(media, moment, "pyav")
        assert abs(flash - beep) <= BEEP_TOLERANCE + 0.006, (moment, flash, beep)
        assert abs(beep) <= 0.03, (moment, beep)


@pytest.mark.parametrize("name", FILES | WITHOUT_PRIMING)
def test_a_jump_gives_what_reading_from_the_beginning_gives(name: str) -> None:
    """To half a millisecond where the container counts in milliseconds, else to the sample."""
    media = file_of(name)
    whole = decode_audio(media, 60.0)
    for start in (0.3, 28.7, 56.2):
        part = decode_audio(media, 2.0, start_seconds=start)
        assert len(part) == 2 * SAMPLE_RATE
        most = 9 if start > 30 and ("mkv" in name or name in ("webm", "flv")) else 0
        errors = {}
        for lag in range(-most, most + 1):
            first = round(start * SAMPLE_RATE) + lag
            errors[lag] = float((part - whole[first : first + len(part)]).square().mean().sqrt())
        assert min(errors.values()) < 0.05, (start, errors)


@pytest.mark.parametrize(
    "name",
    ["mp4, 29.97 Hz, B frames", "mp4 of a phone", "webm", "mkv, late sound", "avi", "ts", "mpg"],
)
def test_spans_that_are_cut_stay_in_sync(name: str, tmp_path: Path) -> None:
    path = tmp_path / "whole"
    path.write_bytes(file_of(name))
    for start, moment in ((0.0, 1), (28.2, 29), (56.41, 57)):
        flash, beep = flash_and_beep(cut_clip(str(path), start, start + 2.5), moment - start, "pyav")
        assert abs(beep) <= (0.03 if name in WITHOUT_PRIMING else 0.003), (start, beep)
        frame_seconds = 0.1 if "phone" in name else 1 / 25
        assert -0.006 <= flash - beep <= frame_seconds + 0.006, (start, flash, beep)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("audio_seconds", [2.0, 10.0])  # the sound inside the frames' window, and the reverse
@pytest.mark.parametrize("name", ["mp4, 29.97 Hz, B frames", "mkv of a phone, AAC 16 kHz"])
def test_samples_hold_sound_and_frames_of_the_same_moments(
    name: str, audio_seconds: float, training: bool, backend: str
) -> None:
    media, window = file_of(name), FrameWindow(32, 8.0, 32)
    decoder = ClipDecoder(audio_seconds, window, 0, training, backend)
    duration = probe(media).duration_seconds
    record = json.dumps({"duration_seconds": duration}).encode()
    num_lit = num_loud = 0
    for epoch in range(6 if training else 1):
        (sample,) = decoder.decode(RawClip("clip", "shard", epoch, 1, media, record))
        starts = decoder.starts(duration, sample.seed)
        assert sample.frames is not None
        assert sample.waveform is not None
        for number, level in enumerate(sample.frames.float().mean((1, 2, 3))):
            second = starts["video"] + number / 8
            if _is_on(second) == _is_on(second - 0.1):  # no edge within one frame
                assert (level > (DIM + BRIGHT) / 2) == _is_on(second), (epoch, second)
                num_lit += _is_on(second)
        loudness = sample.waveform.unfold(0, 320, 320).abs().amax(1)  # of 20 ms each
        for number, peak in enumerate(loudness):
            second = starts["audio"] + number / 50
            if _is_on(second - 0.02) == _is_on(second + 0.04):
                assert (peak > 0.1) == _is_on(second), (epoch, second)
                num_loud += _is_on(second)
    assert num_loud > 10, "no beep in any window, the test tests nothing"
    assert num_lit > 1, "no flash in any window, the test tests nothing"
