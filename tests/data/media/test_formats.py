"""Every kind of file that people have decodes to what was put in, in every back end; what is done with odd ones is stated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mavil.data.media import (
    DecodeError,
    FrameWindow,
    SoundWindow,
    cut_clip,
    decode_audio,
    decode_clip,
    decode_frames,
    probe,
)
from mavil.structs import MODALITIES, SAMPLE_RATE
from tests.data.media.media_files import Pictures, Sound, grey, growing_pictures, make_media, numbered, numbers_in, tone

VPX = {"deadline": "realtime", "cpu-used": "8", "b": "1M"}
EIGHT = Fraction(8)
# What decord's old FFmpeg and its seeking cannot do; PyAV and torchcodec can.
NOT_IN_DECORD = {
    "ts": "decord takes the wrong frames from MPEG streams",
    "mpg": "decord takes the wrong frames from MPEG streams",
}


def _pictures(codec: str = "libx264", **options: str) -> Pictures:
    """Two seconds: 16 numbered pictures, 8 a second."""
    return Pictures(numbered(16), EIGHT, codec=codec, options=options or Pictures([]).options)


def _sound(rate: int = SAMPLE_RATE, codec: str = "aac") -> Sound:
    return Sound(tone(2.0, rate)[None], rate, codec=codec)


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "mp4": ("mp4", lambda: make_media("mp4", _pictures(), _sound())),
    "mp4 in fragments": (
        "mp4",
        lambda: make_media("mp4", _pictures(), _sound(), {"movflags": "frag_keyframe+delay_moov+default_base_moof"}),
    ),
    "mov": ("mov", lambda: make_media("mov", _pictures(), _sound(44_100, "pcm_s16le"))),
    "mkv": ("mkv", lambda: make_media("matroska", _pictures(), _sound(48_000))),
    "webm vp9": ("webm", lambda: make_media("webm", _pictures("libvpx-vp9", **VPX), _sound(48_000, "libopus"))),
    "webm vp8": ("webm", lambda: make_media("webm", _pictures("libvpx", **VPX), _sound(48_000, "libopus"))),
    "avi": ("avi", lambda: make_media("avi", _pictures("mpeg4", qscale="2"), _sound(44_100, "pcm_s16le"))),
    "ts": ("mpegts", lambda: make_media("mpegts", _pictures(), _sound(48_000))),
    "mpg": (
        "mpeg",
        lambda: make_media(
            "mpeg",
            Pictures([image for image in numbered(16) for _ in range(3)], Fraction(24), codec="mpeg2video", options={}),
            _sound(44_100, "mp2"),
        ),
    ),
    "flv": ("flv", lambda: make_media("flv", _pictures(), _sound(44_100))),
    "hevc": (
        "mp4",
        lambda: make_media("mp4", _pictures("libx265", preset="ultrafast", **{"x265-params": "log-level=none"})),
    ),
    "pictures only": ("webm", lambda: make_media("webm", _pictures("libvpx", **VPX))),
    "sound only mp4": ("m4a", lambda: make_media("ipod", None, _sound())),
    "alac": ("m4a", lambda: make_media("ipod", None, _sound(44_100, "alac"))),
    "ogg": ("ogg", lambda: make_media("ogg", None, _sound(48_000, "libopus"))),
    "mp3": ("mp3", lambda: make_media("mp3", None, _sound(44_100, "libmp3lame"))),
    "flac": ("flac", lambda: make_media("flac", None, _sound(44_100, "flac"))),
    "aac": ("aac", lambda: make_media("adts", None, _sound(44_100))),
    "aiff": ("aiff", lambda: make_media("aiff", None, _sound(44_100, "pcm_s16be"))),
    "wav": ("wav", lambda: make_media("wav", None, _sound(44_100, "pcm_s16le"))),
}
"""Name -> what probe calls the container, and how to make one."""


@functools.cache
def file_of(name: str) -> bytes:
    return FILES[name][1]()


def assert_is_tone(waveform: torch.Tensor, hz: float = 440.0, level: float = 0.5) -> None:
    middle = waveform[6400:25600].numpy() * np.hanning(19_200)
    spectrum = np.abs(np.fft.rfft(middle)) * 4 / 19_200
    assert spectrum.argmax() * SAMPLE_RATE / 19_200 == pytest.approx(hz, abs=1)
    assert spectrum.max() == pytest.approx(level, rel=0.12)  # lossy codecs


@pytest.mark.parametrize("name", FILES)
def test_every_container_is_read(name: str, backend: str, tmp_path: Path) -> None:
    media, info = file_of(name), probe(file_of(name))
    assert info.ending == FILES[name][0]
    path = tmp_path / "clip"  # the name tells nothing
    path.write_bytes(media)
    assert probe(str(path)) == info
    assert {"audio": info.has_audio, "video": info.has_video} == {m: m in info.track_seconds for m in MODALITIES}
    assert max(info.track_seconds.values()) == info.duration_seconds
    # Sound codecs fill their last packet, and some containers keep what they put before the first.
    assert info.duration_seconds == pytest.approx(2.0, abs=0.15)
    if info.has_audio:
        waveform = decode_audio(media, 5.0, backend)
        by_path, _ = decode_clip(str(path), SoundWindow(0.0, 5.0), None, backend=backend)
        assert by_path is not None
        assert torch.equal(by_path, waveform)
        assert len(waveform) / SAMPLE_RATE == pytest.approx(2.0, abs=0.15)
        assert_is_tone(waveform)
    if not info.has_video:
        return
    if backend == "decord" and name in NOT_IN_DECORD:
        with pytest.raises(DecodeError, match=r"use data\.backend=pyav"):
            decode_frames(media, FrameWindow(1, 1.0, 64), 0.0, backend)
        return
    assert info.frames_per_second == pytest.approx(24 if name == "mpg" else 8, abs=0.1)
    late = 0.06 if name in ("ts", "mpg", "flv") else 0.0  # there the file begins with what the sound codec put first
    numbers = numbers_in(decode_frames(media, FrameWindow(4, 2.0, 64), 0.13 + late, backend))
    assert numbers == [1, 5, 9, 13]


@pytest.mark.parametrize("name", ["avi", "ts", "mpg", "flv", "aac", "aiff"])
def test_containers_that_shards_do_not_hold_are_converted(name: str, tmp_path: Path) -> None:
    path = tmp_path / name  # the name tells nothing
    path.write_bytes(file_of(name))
    media = cut_clip(str(path), None, None)
    assert probe(media).ending == ("m4a" if name in ("aac", "aiff") else "mp4")
    assert_is_tone(decode_audio(media, 2.0))
    if probe(media).has_video:
        assert numbers_in(decode_frames(media, FrameWindow(3, 2.0, 64), 0.2)) == [1, 5, 9]


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_any_sample_rate_becomes_16_khz(rate: int, backend: str) -> None:
    waveform = decode_audio(make_media("wav", None, _sound(rate, "pcm_s16le")), 2.0, backend)
    assert len(waveform) == pytest.approx(2 * SAMPLE_RATE, abs=1)
    expected = torch.from_numpy(tone(2.0))[: len(waveform)]
    assert (waveform - expected)[200:-200].abs().max() < 0.003  # the resampler has no neighbours at the ends


@pytest.mark.parametrize(("layout", "num_channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("wav", "pcm_s16le")])
def test_channels_become_their_mean(layout: str, num_channels: int, container: str, codec: str, backend: str) -> None:
    channels = np.stack([tone(1.0, hz=300.0 + 100 * number) for number in range(num_channels)])
    waveform = decode_audio(make_media(container, None, Sound(channels, layout=layout, codec=codec)), 1.0, backend)
    assert (waveform - torch.from_numpy(channels.mean(0))).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("codec", "tolerance"),
    [
        ("pcm_u8", 0.006),
        ("pcm_s16le", 1e-4),
        ("pcm_s24le", 1e-6),
        ("pcm_s32le", 1e-6),
        ("pcm_f32le", 1e-7),
        ("pcm_f64le", 1e-7),
        ("pcm_mulaw", 0.02),
    ],
)
def test_any_sample_format_is_scaled_to_one(codec: str, tolerance: float, backend: str) -> None:
    waveform = decode_audio(make_media("wav", None, _sound(codec=codec)), 2.0, backend)
    assert (waveform - torch.from_numpy(tone(2.0))).abs().max() < tolerance


def test_sound_stays_within_one_and_is_a_number(backend: str) -> None:
    loud, broken = tone(1.0, level=3.0)[None], tone(1.0)[None]
    waveform = decode_audio(make_media("wav", None, Sound(loud, codec="pcm_f32le")), 1.0, backend)
    assert torch.equal(waveform, torch.from_numpy(loud[0]).clamp(-1, 1))
    broken[0, 5000] = np.nan
    with pytest.raises(DecodeError, match="no numbers") as caught:
        decode_audio(make_media("wav", None, Sound(broken, codec="pcm_f32le")), 1.0, backend)
    assert caught.value.cause == "undecodable"


def test_silence_is_sound(backend: str) -> None:
    silent = Sound(np.zeros((2, 44_100), np.float32), 44_100, "stereo", codec="flac")
    waveform = decode_audio(make_media("flac", None, silent), 1.0, backend)
    assert waveform.shape == (SAMPLE_RATE,)
    assert not waveform.any()


@pytest.mark.parametrize(
    "rate", [Fraction(1), Fraction(15, 2), Fraction(24_000, 1001), Fraction(25), Fraction(30_000, 1001), Fraction(60)]
)
def test_any_frame_rate_is_sampled_by_time(rate: Fraction, backend: str) -> None:
    media = make_media("mp4", Pictures(numbered(30), rate))
    assert probe(media).frames_per_second == pytest.approx(float(rate), rel=1e-6)
    for ratio in (1.0, 0.41, 1.7):  # 0.41: past the end, so that the clip begins again
        window = FrameWindow(16, ratio * float(rate), 64)
        expected = [int(0.5 + i / ratio) % 30 for i in range(16)]
        assert numbers_in(decode_frames(media, window, 0.5 / float(rate), backend)) == expected


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_variable_frame_rate_is_sampled_by_time(container: str, backend: str) -> None:
    """As phones write: the next picture comes when it is ready."""
    steps = [33, 34, 66, 33, 200, 17, 50, 400, 33, 100, 33, 34, 500, 33]
    times = [Fraction(sum(steps[:number]), 1000) for number in range(len(steps) + 1)]
    pictures = Pictures(numbered(len(times)), Fraction(30), times, time_base=Fraction(1, 1000))
    media = make_media(container, pictures)
    wanted = [0.005 + i / 16 for i in range(24)]
    expected = [max(number for number, time in enumerate(times) if time <= second) for second in wanted]
    assert numbers_in(decode_frames(media, FrameWindow(24, 16.0, 64), 0.005, backend)) == expected


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_phone_video_is_upright(rotation: int, backend: str) -> None:
    stored = grey(30, 112, 144)
    stored[:40, :40] = 230  # a bright corner, top left as stored
    pictures = Pictures([stored] * 4, EIGHT, rotation=rotation)
    frame = decode_frames(make_media("mp4", pictures), FrameWindow(1, 1.0, 112), 0.0, backend)[0].float().mean(0)
    assert frame.shape == ((112, 144) if rotation == 180 else (144, 112))
    corners = {(0, 0): frame[:24, :24], (0, 1): frame[:24, -24:], (1, 0): frame[-24:, :24], (1, 1): frame[-24:, -24:]}
    brightest = max(corners, key=lambda place: float(corners[place].mean()))
    assert brightest == {90: (1, 0), 180: (1, 1), 270: (0, 1)}[rotation]  # counter-clockwise, as PyAV writes it


@pytest.mark.parametrize(("height", "width"), [(133, 175), (16, 16), (16, 320), (64, 2)])
def test_any_size_keeps_its_pixels(height: int, width: int, backend: str) -> None:
    if backend == "decord" and width < 64:
        pytest.skip("decord cannot read pictures that narrow")
    pictures = Pictures(numbered(4, height, width), EIGHT, codec="mjpeg", pix_fmt="yuvj420p", options={"qscale": "2"})
    frames = decode_frames(make_media("mov", pictures), FrameWindow(4, 8.0, 400), 0.01, backend)
    assert frames.shape == (4, 3, height, width)
    assert numbers_in(frames) == [0, 1, 2, 3]
    short_side = min(8, height, width)
    small = decode_frames(make_media("mov", pictures), FrameWindow(1, 8.0, 8), 0.01, backend)
    assert min(small.shape[2:]) == short_side
    assert max(small.shape[2:]) == round(max(height, width) * short_side / min(height, width))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"])
def test_any_pixel_format_becomes_rgb(pix_fmt: str, backend: str) -> None:
    media = make_media("mp4", Pictures(numbered(8, 50, 70), EIGHT, pix_fmt=pix_fmt))
    assert numbers_in(decode_frames(media, FrameWindow(8, 8.0, 64), 0.01, backend)) == list(range(8))


def test_colours_are_where_they_belong(backend: str) -> None:
    image = np.zeros((48, 96, 3), np.uint8)
    for channel in range(3):
        image[:, 32 * channel : 32 * channel + 32, channel] = 200
    media = make_media("mp4", Pictures([image] * 3, EIGHT, pix_fmt="yuv444p"))
    frame = decode_frames(media, FrameWindow(1, 1.0, 64), 0.0, backend)[0].float()  # [3, H, Wd]
    for channel in range(3):
        means = frame[:, :, 32 * channel + 8 : 32 * channel + 24].mean((1, 2))
        assert means.argmax() == channel
        assert means.max() == pytest.approx(200, abs=6)


def test_pixels_are_taken_as_stored(backend: str) -> None:
    """Our choice: neither the shape of a pixel (anamorphic DVD) nor fields (interlaced) are undone; models crop and resize."""
    options = {**Pictures([]).options, "x264-params": "tff=1"}
    pictures = Pictures(numbered(8, 48, 60), EIGHT, aspect=Fraction(16, 11), options=options)
    frames = decode_frames(make_media("mp4", pictures), FrameWindow(8, 8.0, 64), 0.01, backend)
    assert frames.shape == (8, 3, 48, 60)
    assert numbers_in(frames) == list(range(8))


def test_short_clips_give_short_sound_and_looped_frames(backend: str) -> None:
    media = make_media("mp4", Pictures(numbered(3), EIGHT), Sound(tone(0.3)[None]))
    assert len(decode_audio(media, 10.0, backend)) / SAMPLE_RATE == pytest.approx(0.3, abs=0.07)
    assert numbers_in(decode_frames(media, FrameWindow(8, 8.0, 64), 0.01, backend)) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_one_picture_fills_the_window(backend: str) -> None:
    media = make_media("mp4", Pictures(numbered(1), EIGHT))
    for start in (0.0, 0.05, 7.0):
        assert numbers_in(decode_frames(media, FrameWindow(4, 2.0, 64), start, backend)) == [0, 0, 0, 0]


def test_tracks_may_end_at_different_times(backend: str) -> None:
    """Our choice: each track follows its own rule, the sound ends and the pictures begin again."""
    early_pictures = make_media("mp4", Pictures(numbered(8), EIGHT), Sound(tone(2.0)[None]))
    assert numbers_in(decode_frames(early_pictures, FrameWindow(4, 2.0, 64), 0.26, backend)) == [2, 6, 2, 6]
    assert len(decode_audio(early_pictures, 1.9, backend)) == round(1.9 * SAMPLE_RATE)
    early_sound = make_media("mp4", Pictures(numbered(16), EIGHT), Sound(tone(1.0)[None]))
    assert len(decode_audio(early_sound, 2.0, backend)) / SAMPLE_RATE == pytest.approx(1.0, abs=0.07)
    assert numbers_in(decode_frames(early_sound, FrameWindow(4, 2.0, 64), 0.01, backend)) == [0, 4, 8, 12]
    assert probe(early_pictures).duration_seconds == probe(early_sound).duration_seconds == pytest.approx(2.0, abs=0.01)
    with pytest.raises(DecodeError) as caught:
        decode_audio(early_sound, 1.0, backend, start_seconds=1.5)
    assert caught.value.cause == "too_short"


def test_a_track_that_begins_late_keeps_its_place(backend: str) -> None:
    late_pictures = Pictures(numbered(8), EIGHT, [1 + number / EIGHT for number in range(8)])
    for container in ("mp4", "matroska"):
        media = make_media(container, late_pictures, Sound(tone(2.0)[None]))
        # Before the first picture it is the first picture that is seen.
        frames = decode_frames(media, FrameWindow(8, 4.0, 64), 0.01, backend)
        assert numbers_in(frames) == [0, 0, 0, 0, 0, 2, 4, 6], container
        media = make_media(container, _pictures(), Sound(tone(1.0)[None], start_seconds=1.0))
        waveform = decode_audio(media, 2.0, backend)
        assert waveform[: SAMPLE_RATE - 800].abs().max() < 1e-3, container
        assert waveform[SAMPLE_RATE + 400 : SAMPLE_RATE + 800].abs().max() > 0.4, container


def test_times_count_from_the_files_beginning() -> None:
    """Broadcasts begin at any time of day."""
    pictures = Pictures(numbered(16), EIGHT, [100 + number / EIGHT for number in range(16)])
    media = make_media("mpegts", pictures, Sound(tone(2.0)[None], start_seconds=100.0))
    assert probe(media).duration_seconds == pytest.approx(2.0, abs=0.15)
    assert numbers_in(decode_frames(media, FrameWindow(4, 2.0, 64), 0.2)) == [1, 5, 9, 13]
    assert_is_tone(decode_audio(media, 2.0))


def test_pictures_that_change_their_size_are_refused(backend: str) -> None:
    media = growing_pictures()
    window = FrameWindow(4, 8.0, 64)
    if backend == "pyav":
        assert decode_frames(media, window, 0.01, backend).shape == (4, 3, 48, 64)
        with pytest.raises(DecodeError, match="change their size"):
            decode_frames(media, window, 0.76, backend)
    else:  # their own way to fail, or every picture in the size of the first
        with contextlib.suppress(DecodeError):
            assert decode_frames(media, window, 0.76, backend).shape == (4, 3, 48, 64)


def test_a_message_that_names_the_file_does_not_name_it_twice() -> None:
    error = DecodeError("undecodable", "[Errno 1094995529] Invalid data: 'my clips/a.mp4'")
    assert error.told("my clips/a.mp4") == "Invalid data"
    assert error.told() == "Invalid data: 'my clips/a.mp4'"
    assert DecodeError("no_audio").told("a.mp4") == "no audio"
