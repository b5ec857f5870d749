"""Bytes to waveform and frames: timing to the frame, agreement of the back ends, and what damaged files turn into."""

from __future__ import annotations

import contextlib
import importlib
import io
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from mavil.data import media as room
from mavil.data.media import (
    DecodeError,
    FrameWindow,
    SoundWindow,
    cut_clip,
    decode_audio,
    decode_clip,
    decode_frames,
    decoders,
    encode_clip,
    picture_track,
    probe,
)
from mavil.data.media.containers import open_media, read_packets
from mavil.data.synthetic import list_synthetic, read_synthetic, synthetic_clip
from mavil.structs import SAMPLE_RATE, UserError
from tests.data.media.media_files import Pictures, Sound, make_media, numbered

NUM_FRAMES, FPS = 32, 8.0
BACKENDS = ["pyav", "torchcodec", "decord"]


def numbered_frames(num_frames: int = NUM_FRAMES, height: int = 48, width: int = 64) -> Tensor:
    """``[T, 3, H, Wd]``: frame k is grey with value 10 + 7 k."""
    return (10 + 7 * torch.arange(num_frames)).to(torch.uint8)[:, None, None, None].expand(-1, 3, height, width)


def numbers_in(frames: Tensor) -> list[int]:
    return ((frames.float().mean((1, 2, 3)) - 10) / 7).round().int().tolist()


def sine(seconds: float, hz: float = 440.0, rate: int = SAMPLE_RATE) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(round(seconds * rate)) / rate)


def wav(channels: list[Tensor], rate: int, width: int = 2) -> bytes:
    """A WAV file; ``width`` bytes per sample (1 is unsigned)."""
    values = torch.stack(channels, 1).double().numpy() * (2.0 ** (8 * width - 1) - 1)
    samples = (values + 128).astype("u1") if width == 1 else values.astype(f"<i{width}")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def numbered_clip() -> bytes:
    return encode_clip(numbered_frames(), FPS, sine(4.0))


@pytest.mark.parametrize(
    ("window", "start"),
    [
        (FrameWindow(8, 2.0, 64), 0.0),
        (FrameWindow(8, 2.0, 64), 1.3),  # wraps round after 2.7 s
        (FrameWindow(16, 3.0, 64), 2.9),  # wraps round, off the frame grid
        (FrameWindow(40, 8.0, 64), 0.125),  # every frame, on the grid, and once more
        (FrameWindow(3, 0.5, 64), 9.0),  # begins beyond the end
    ],
)
def test_the_frame_on_screen_is_picked(numbered_clip: bytes, backend: str, window: FrameWindow, start: float) -> None:
    times = [
        Fraction(str(start)) + Fraction(i) / Fraction(str(window.frames_per_second)) for i in range(window.num_frames)
    ]
    expected = [int((time % 4) * 8) for time in times]
    assert numbers_in(decode_frames(numbered_clip, window, start, backend)) == expected


def test_skipping_frames_nobody_refers_to_changes_no_pixel() -> None:
    # The slower preset makes B frames, most of them not referred to.
    media = encode_clip(synthetic_clip(0, 0).frames, FPS, None, key_frame_every=12, preset="fast")
    with av.open(io.BytesIO(media)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert any(frame.pict_type == 3 for frame in _decoded(media)), (
            "the clip has no B frames, the test tests nothing"
        )
    picked = decode_frames(media, FrameWindow(13, 2.7, 96), 0.4)
    expected = [everything[int((0.4 + i / 2.7) % 4 * 8)] for i in range(13)]
    assert np.array_equal(picked.permute(0, 2, 3, 1).numpy(), np.stack(expected))


@pytest.mark.parametrize("container_format", ["mp4", "mov", "matroska", "fragmented"])
def test_a_jump_into_the_file_changes_no_pixel(container_format: str) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if container_format == "fragmented" else {}
    generator = np.random.default_rng(0)
    images = [generator.integers(256, size=(6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(40)]
    # Frames of unequal length, with B frames and a key frame every 7.
    times = [Fraction(int(tick), 50) for tick in np.cumsum(generator.integers(1, 9, size=40)) - 1]
    pictures = Pictures(images, times=times, time_base=Fraction(1, 50), options={"preset": "fast", "g": "7"})
    media = make_media(container_format.replace("fragmented", "mp4"), pictures, container_options=options)
    decoded = _decoded(media)
    clock = [frame.time - decoded[0].time for frame in decoded]
    pixels = [frame.to_ndarray(format="rgb24").transpose(2, 0, 1) for frame in decoded]
    for start in np.arange(0.013, clock[-1] - 0.9, 0.24):
        frames = decode_frames(media, FrameWindow(6, 7.0, 64), float(start)).numpy()
        for number, frame in enumerate(frames):
            on_screen = int(np.searchsorted(clock, start + number / 7.0, side="right")) - 1
            assert np.array_equal(frame, pixels[on_screen]), f"frame {number} from {start:.3f} s"


def test_only_the_packets_of_the_window_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    media = encode_clip(numbered_frames(), FPS, sine(4.0), key_frame_every=8, preset="fast")
    read, opened = [], []

    def counted(container: av.container.InputContainer, streams: object) -> Iterator[av.Packet]:
        for packet in read_packets(container, streams):
            read.append(packet.pts)
            yield packet

    def counted_open(source: bytes) -> contextlib.AbstractContextManager[av.container.InputContainer]:
        opened.append(source)
        return open_media(source)

    monkeypatch.setattr(picture_track, "read_packets", counted)
    monkeypatch.setattr(decoders, "open_media", counted_open)
    _, frames = decode_clip(media, SoundWindow(0.0, 4.0), FrameWindow(3, 4.0, 64), 1.3)
    assert frames is not None
    assert numbers_in(frames) == [10, 12, 14]
    assert len(opened) == 1
    assert len(read) < 16, "8 frames of the window's key frame, and what comes before it is known that no more follows"
    read.clear()
    assert numbers_in(decode_frames(media, FrameWindow(3, 1.0, 64), 2.5)) == [20, 28, 4]  # past the end: all are needed
    assert len([pts for pts in read if pts is not None]) >= NUM_FRAMES


def _decoded(media: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(media)) as container:
        return list(container.decode(video=0))


def test_back_ends_agree_on_a_clip(backend: str) -> None:
    clip = synthetic_clip(0, 4)
    media = encode_clip(clip.frames, FPS, clip.waveform)
    reference, waveform = decode_audio(media, 3.0), decode_audio(media, 3.0, backend)
    assert waveform.shape == reference.shape == (3 * SAMPLE_RATE,)
    assert waveform.dtype == torch.float32
    assert torch.allclose(waveform, reference, atol=1e-4)
    for side, tolerance in ((96, 0.5), (48, 2.5)):  # shrinking rounds differently
        window = FrameWindow(8, 2.0, side)
        reference, frames = decode_frames(media, window, 0.7), decode_frames(media, window, 0.7, backend)
        assert frames.shape == reference.shape == (8, 3, side, side)
        assert frames.dtype == torch.uint8
        assert (frames.float() - reference.float()).abs().mean() < tolerance


def test_sound_comes_back_in_place(backend: str) -> None:
    waveform = sine(4.0) * (torch.arange(4 * SAMPLE_RATE) >= SAMPLE_RATE)
    decoded = decode_audio(encode_clip(None, FPS, waveform), 4.0, backend)
    lags = range(-8, 9)
    match = [float(decoded[17000:40000] @ waveform[17000 + lag : 40000 + lag]) for lag in lags]
    assert lags[int(np.argmax(match))] == 0
    assert (decoded - waveform).square().mean().sqrt() < 0.02


@pytest.mark.parametrize(
    ("container_format", "codec", "rate", "tolerance"),
    [
        ("mp4", "aac", 16_000, 1e-6),
        ("mov", "aac", 44_100, 1e-6),
        ("matroska", "aac", 44_100, 1e-6),
        ("mp3", "libmp3lame", 44_100, 1e-6),
        ("mp4", "libmp3lame", 22_050, 1e-6),
        ("ogg", "libopus", 48_000, 1e-5),
        ("webm", "libopus", 48_000, 1e-5),
        ("ogg", "vorbis", 44_100, 1e-6),
        ("webm", "vorbis", 44_100, 1e-6),
        ("ogg", "flac", 44_100, 1e-6),
        ("flac", "flac", 48_000, 1e-6),
        ("wav", "pcm_s16le", 8_000, 1e-6),
        ("wav", "pcm_s16le", 44_100, 1e-6),
    ],
)
def test_late_sound_is_that_of_the_whole(container_format: str, codec: str, rate: int, tolerance: float) -> None:
    clicks = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 4 * rate)) * (np.arange(4 * rate) % 1000 < 30)
    # AAC may replace noise by other noise, drawn anew at every decoding: not here.
    options = {"aac": {"aac_pns": "0"}, "vorbis": {"strict": "experimental"}}.get(codec, {})
    media = make_media(container_format, None, Sound(clicks, rate, "stereo", codec, options=options))
    whole = decode_audio(media, 10.0)
    assert whole.abs().max() > 0.1
    for start in (0.3, 0.7, 1.777, 3.3):
        late = decode_audio(media, 0.6, start_seconds=start)
        first = round(start * SAMPLE_RATE)
        assert len(late) == round(0.6 * SAMPLE_RATE)
        assert (late - whole[first : first + len(late)]).abs().max() < tolerance


def ending_at(ogg: bytes, granule: int) -> bytes:
    """An Ogg file whose last page says that its sound ends at that sample; what the last packet has beyond it is cut off."""
    page = ogg.rindex(b"OggS")
    head, body = ogg[page : page + 26], ogg[page + 26 :]
    head = head[:6] + granule.to_bytes(8, "little") + head[14:22] + bytes(4)
    remainder = 0
    for byte in head + body:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (0x104C11DB7 if remainder & 0x80000000 else 0)
    return ogg[:page] + head[:22] + remainder.to_bytes(4, "little") + body


def test_an_ogg_file_may_end_before_its_last_packet_begins() -> None:
    """So say the encoders of some archives; FFmpeg then gives that packet a negative length, as 32 bits without a sign."""
    sound = Sound(
        np.random.default_rng(0).uniform(-0.4, 0.4, (2, 44_100)), 44_100, "stereo", "vorbis", options={"strict": "-2"}
    )
    media = make_media("ogg", None, sound)
    with open_media(media) as container:
        last = [packet for packet in read_packets(container, container.streams.audio) if packet.size][-1]
    assert last.pts is not None
    cut = ending_at(media, last.pts - 20)
    with open_media(cut) as container:
        assert max(packet.duration or 0 for packet in read_packets(container, container.streams.audio)) > 2**31
    assert probe(cut).duration_seconds == pytest.approx((last.pts - 20) / 44_100, abs=1e-6)
    assert torch.equal(decode_audio(cut, 0.9), decode_audio(media, 0.9))


def test_late_sound_is_decoded_from_near_its_start() -> None:
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, (1, 4 * SAMPLE_RATE))
    media = bytearray(make_media("flac", None, Sound(noise, codec="flac")))
    expected = decode_audio(bytes(media), 0.5, start_seconds=3.0)
    with av.open(io.BytesIO(media)) as container:
        early = [(p.pos, p.size) for p in container.demux(audio=0) if p.pos and p.pts * p.time_base < 2]
    for position, size in early[1:]:
        media[position + 16 : position + size] = bytes(size - 16)
    assert torch.equal(decode_audio(bytes(media), 0.5, start_seconds=3.0), expected)
    with contextlib.suppress(DecodeError):
        assert not torch.equal(decode_audio(bytes(media), 3.5)[-8000:], expected), "the damage harms nothing"


def test_the_clip_is_its_sound_and_its_frames(numbered_clip: bytes, backend: str) -> None:
    window = FrameWindow(4, 2.0, 64)
    waveform, frames = decode_clip(numbered_clip, SoundWindow(1.5, 1.0), window, 0.7, backend)
    assert waveform is not None
    assert frames is not None
    assert torch.equal(waveform, decode_audio(numbered_clip, 1.0, backend, 1.5))
    assert (waveform - sine(4.0)[24_000:40_000]).square().mean().sqrt() < 0.02
    assert torch.equal(frames, decode_frames(numbered_clip, window, 0.7, backend))
    assert decode_clip(numbered_clip, None, None, backend=backend) == (None, None)
    with pytest.raises(DecodeError) as caught:
        decode_audio(numbered_clip, 1.0, backend, start_seconds=4.5)
    assert caught.value.cause == "too_short"


def test_what_the_header_of_an_mp4_leaves_out_is_looked_up() -> None:
    media = make_media("mp4", Pictures(numbered(8), Fraction(8), codec="mpeg4", options={}))
    assert (probe(media).width, probe(media).height) == (64, 48)
    assert numbers_in(decode_frames(media, FrameWindow(3, 4.0, 64), 0.25)) == [2, 4, 6]


def test_fragments_tell_their_own_times() -> None:
    """An MP4 in fragments must be looked into: its header alone does not say when its tracks begin."""
    pictures = Pictures(numbered(16), Fraction(8), times=[Fraction(4 + number, 8) for number in range(16)])
    options = {"movflags": "frag_keyframe+empty_moov+delay_moov"}
    media = make_media("mp4", pictures, Sound(sine(2.0)[None].numpy()), options)
    assert numbers_in(decode_frames(media, FrameWindow(4, 4.0, 64), 0.5)) == [0, 2, 4, 6]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_channels_are_averaged_and_resampled(width: int) -> None:
    rate = 44_100
    media = wav([sine(2.0, 500, rate), torch.zeros(2 * rate)], rate, width)
    decoded, expected = decode_audio(media, 1.5), 0.5 * sine(1.5, 500)
    assert len(decoded) == len(expected)
    assert (decoded - expected)[100:].abs().max() < (0.006 if width == 1 else 0.002)


def test_no_more_than_the_file_has_is_returned() -> None:
    assert len(decode_audio(wav([sine(0.5)], SAMPLE_RATE), 10.0)) == 8000


def test_sound_that_begins_late_is_preceded_by_silence(backend: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=8)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        sound = av.AudioFrame.from_ndarray(sine(1.0)[None].numpy(), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = SAMPLE_RATE, SAMPLE_RATE // 2
        container.mux([*audio.encode(sound), *audio.encode(None)])
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 + 7 * number, np.uint8))
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    decoded = decode_audio(file.getvalue(), 1.5, backend)
    first = int((decoded.abs() > 0.1).nonzero()[0])
    assert first / SAMPLE_RATE == pytest.approx(0.5, abs=0.005)
    late = decode_audio(file.getvalue(), 0.6, backend, start_seconds=0.9)
    assert torch.equal(late, decoded[round(0.9 * SAMPLE_RATE) :])
    assert numbers_in(decode_frames(file.getvalue(), FrameWindow(4, 4.0, 64), 0.5, backend)) == [4, 6, 8, 10]


def test_large_frames_shrink_and_small_ones_stay() -> None:
    media = encode_clip(numbered_frames(2, 120, 200), FPS, None)
    assert decode_frames(media, FrameWindow(1, 1.0, 48)).shape == (1, 3, 48, 80)
    assert decode_frames(media, FrameWindow(1, 1.0, 120)).shape == (1, 3, 120, 200)
    assert decode_frames(media, FrameWindow(1, 1.0, 300)).shape == (1, 3, 120, 200)


def test_shrinking_averages_and_does_not_pick() -> None:
    stripes = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    stripes[..., ::2, :] = 200
    shrunk = decode_frames(encode_clip(stripes, FPS, None, quality=5), FrameWindow(1, 1.0, 24))
    assert (shrunk.float() - 100).abs().max() < 12


def test_rotated_pictures_are_turned_upright() -> None:
    images = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
    images[:, :, :, :16] = 255  # bright left edge
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation mark")
        stream.set_display_rotation(90)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.permute(1, 2, 0).contiguous().numpy())))
        container.mux(stream.encode(None))
    rotation = _decoded(file.getvalue())[0].rotation
    frame = decode_frames(file.getvalue(), FrameWindow(1, 1.0, 64))[0].float().mean(0)
    assert frame.shape == (64, 48)
    bright = "bottom" if frame[-8:].mean() > frame[:8].mean() else "top"
    assert bright == ("bottom" if rotation == 90 else "top")  # rotation counts counter-clockwise


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (b"", "empty"),
        (b"not a media file at all " * 50, "undecodable"),
        (np.random.default_rng(0).bytes(4096), "undecodable"),
        ("cut off", "undecodable"),
    ],
)
def test_damaged_bytes_become_decode_errors(
    numbered_clip: bytes, backend: str, damage: bytes | str, cause: str
) -> None:
    media = numbered_clip[: len(numbered_clip) // 2] if isinstance(damage, str) else damage
    window = FrameWindow(2, 2.0, 64)
    for decode in (probe, lambda m: decode_audio(m, 1.0, backend), lambda m: decode_frames(m, window, 0.0, backend)):
        with pytest.raises(DecodeError) as caught:
            decode(media)
        assert caught.value.cause == cause


def test_a_list_of_other_files_is_not_followed(
    numbered_clip: bytes, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.mp4").write_bytes(numbered_clip)
    monkeypatch.chdir(tmp_path)
    media = b"ffconcat version 1.0\nfile secret.mp4\n"
    with av.open(io.BytesIO(media)) as container:
        assert container.streams.video, "FFmpeg does not follow the list, the test tests nothing"
    for decode in (probe, lambda m: decode_audio(m, 1.0, backend)):
        with pytest.raises(DecodeError) as caught:
            decode(media)
        assert caught.value.cause == "undecodable"


def test_decoding_begins_at_the_key_frame_before_the_window() -> None:
    media = bytearray(encode_clip(numbered_frames(), FPS, None, key_frame_every=8))
    with av.open(io.BytesIO(media)) as container:
        first_group = [(p.pos, p.size) for p in container.demux(video=0)][:8]
    for position, size in first_group:
        media[position : position + size] = bytes(size)
    assert numbers_in(decode_frames(bytes(media), FrameWindow(3, 2.0, 64), 1.0)) == [8, 12, 16]
    with pytest.raises(DecodeError):
        decode_frames(bytes(media), FrameWindow(3, 2.0, 64), 0.0)


def test_random_damage_never_raises_anything_else(numbered_clip: bytes) -> None:
    generator = np.random.default_rng(1)
    for _ in range(60):
        media = np.frombuffer(numbered_clip, np.uint8).copy()
        media[generator.integers(len(media), size=30)] = generator.integers(256, size=30)
        for decode in (probe, lambda m: decode_audio(m, 4.0), lambda m: decode_frames(m, FrameWindow(4, 2.0, 64))):
            with contextlib.suppress(DecodeError):
                decode(media.tobytes())


def test_missing_tracks_are_named(backend: str) -> None:
    silent, blind = encode_clip(numbered_frames(8), FPS, None), encode_clip(None, FPS, sine(1.0))
    with pytest.raises(DecodeError) as caught:
        decode_audio(silent, 1.0, backend)
    assert caught.value.cause == "no_audio"
    with pytest.raises(DecodeError) as caught:
        decode_frames(blind, FrameWindow(2, 2.0, 64), 0.0, backend)
    assert caught.value.cause == "no_video"


def test_a_cover_image_is_no_picture() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("mp3", rate=SAMPLE_RATE, layout="mono")
        sound = av.AudioFrame.from_ndarray(sine(1.0)[None].numpy(), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = SAMPLE_RATE, 0
        container.mux([*stream.encode(sound), *stream.encode(None)])
    png = io.BytesIO()
    with av.open(png, "w", format="image2pipe") as container:
        image = container.add_stream("png", rate=1)
        image.width = image.height = 8
        image.pix_fmt = "rgb24"
        container.mux([*image.encode(av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8))), *image.encode(None)])
    frame = b"\0image/png\0\x03\0" + png.getvalue()
    frame = b"APIC" + len(frame).to_bytes(4, "big") + b"\0\0" + frame
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    media = b"ID3\x03\0\0" + size + frame + file.getvalue()
    with av.open(io.BytesIO(media)) as container:
        assert len(container.streams.video) == 1, "the file has no cover, the test tests nothing"
    with pytest.raises(DecodeError) as caught:
        decode_frames(media, FrameWindow(1, 1.0, 8))
    assert caught.value.cause == "no_video"
    info = probe(media)
    assert (info.has_audio, info.has_video, info.ending) == (True, False, "mp3")


def test_probe_tells_what_is_there(numbered_clip: bytes) -> None:
    info = probe(numbered_clip)
    assert (info.has_audio, info.has_video, info.width, info.height, info.frames_per_second) == (
        True,
        True,
        64,
        48,
        8.0,
    )
    assert info.duration_seconds == pytest.approx(4.0, abs=1e-3)
    assert info.ending == "mp4"
    assert probe(encode_clip(None, FPS, sine(1.0))).ending == "m4a"
    assert probe(wav([sine(1.0)], 8000)).ending == "wav"


def test_equal_input_gives_equal_bytes(numbered_clip: bytes) -> None:
    assert encode_clip(numbered_frames(), FPS, sine(4.0)) == numbered_clip
    assert b"Lavf" not in numbered_clip, "no version of the writer"
    with pytest.raises(ValueError, match="neither frames nor sound"):
        encode_clip(None, FPS, None)


def test_key_frames_come_as_often_as_asked() -> None:
    media = encode_clip(numbered_frames(), FPS, None, key_frame_every=8)
    assert [number for number, frame in enumerate(_decoded(media)) if frame.key_frame] == [0, 8, 16, 24]


def test_a_span_is_cut_to_its_frames_and_sound(numbered_clip: bytes, tmp_path: Path) -> None:
    waveform = sine(4.0) * (torch.arange(4 * SAMPLE_RATE) >= 2 * SAMPLE_RATE)
    path = tmp_path / "whole.mp4"
    path.write_bytes(encode_clip(numbered_frames(), FPS, waveform))
    media = cut_clip(str(path), 1.2, 2.7)
    # 1.2 s lies inside frame 9, which stays on screen until 1.25 s.
    assert numbers_in(decode_frames(media, FrameWindow(1, 1.0, 64), 0.0)) == [9]
    assert numbers_in(decode_frames(media, FrameWindow(5, 4.0, 64), 0.06)) == [10, 12, 14, 16, 18]
    decoded = decode_audio(media, 10.0)
    assert int((decoded.abs() > 0.1).nonzero()[0]) / SAMPLE_RATE == pytest.approx(0.8, abs=0.005)
    assert len(decoded) / SAMPLE_RATE == pytest.approx(1.5, abs=0.07)  # AAC fills its last packet
    assert probe(media).duration_seconds == pytest.approx(1.5, abs=0.13)


def test_a_whole_file_is_taken_as_it_is_or_converted(numbered_clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "kept.mp4").write_bytes(numbered_clip)
    assert cut_clip(str(tmp_path / "kept.mp4"), None, None) == numbered_clip
    with av.open(str(tmp_path / "old.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in numbered_frames(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.permute(1, 2, 0).contiguous().numpy())))
        container.mux(stream.encode(None))
    converted = cut_clip(str(tmp_path / "old.avi"), None, None)
    assert probe(converted).ending == "mp4"
    assert numbers_in(decode_frames(converted, FrameWindow(4, 2.0, 64), 0.1)) == [0, 4, 8, 12]


def test_spans_and_files_that_are_not_there(numbered_clip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "whole.mp4"
    path.write_bytes(numbered_clip)
    for arguments, cause in (
        ((str(path), 9.0, 10.0), "too_short"),
        ((str(tmp_path / "no.mp4"), None, None), "missing"),
    ):
        with pytest.raises(DecodeError) as caught:
            cut_clip(*arguments)
        assert caught.value.cause == cause
    with pytest.raises(DecodeError) as caught:
        cut_clip(str(tmp_path / "no.mp4"), 0.0, 1.0)
    assert caught.value.cause == "missing"


def test_unknown_and_missing_back_ends_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="choose one of pyav, torchcodec, decord"):
        decode_audio(b"", 1.0, "ffmpeg")

    def fail(name: str) -> None:
        raise ImportError("libavutil.so.59: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"libavutil.*pip install torchcodec.*data\.backend=pyav"):
        room.TorchcodecBackend()


def test_synthetic_files_hold_real_h264_and_aac() -> None:
    with av.open(io.BytesIO(read_synthetic(list_synthetic(1, seed=0)[0]))) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert container.streams.audio[0].rate == SAMPLE_RATE
