"""From a clip to the bytes that go into a shard: spans, byte ranges, stills, and the preset for training."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mavil.data.media import FrameWindow, decode_audio, decode_frames, encodings
from mavil.data.media.containers import DecodeError, probe
from mavil.data.media.encoders import cut_clip, encode_clip
from mavil.data.shards.reading import locate, read_clip, target_of
from mavil.structs import SAMPLE_RATE, Clip, UserError
from tests.data.media.media_files import Pictures, grey, make_media

SOUND = 0.3 * torch.sin(torch.arange(3 * SAMPLE_RATE) / 5)
TRAINING = target_of("training", None)


def grey_levels(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Frame i has level ``20 + 200 i / count``."""
    levels = (20 + 200 * torch.arange(count) / count).to(torch.uint8)
    return levels[:, None, None, None].expand(count, 3, height, width).contiguous()


def test_a_byte_range_is_the_file_inside_a_file(tmp_path: Path) -> None:
    media = encode_clip(grey_levels(4), 8.0, SOUND)
    (tmp_path / "a.tar").write_bytes(b"x" * 100 + media + b"y" * 50)
    clip = Clip(key="a", path=str(tmp_path / "a.tar"), byte_range=(100, len(media)))
    assert read_clip(clip) == media
    with pytest.raises(DecodeError, match="undecodable: the file has"):
        read_clip(Clip(key="a", path=str(tmp_path / "a.tar"), byte_range=(100, len(media) + 51)))
    with pytest.raises(DecodeError, match="missing"):
        read_clip(Clip(key="a", path=str(tmp_path / "b.tar"), byte_range=(0, 1)))


@pytest.mark.parametrize(("seconds", "is_cut"), [(2.0, False), (2.9, False), (3.5, True)])
def test_a_file_that_may_be_cut_is_cut_only_if_it_is_clearly_longer(
    tmp_path: Path, seconds: float, is_cut: bool
) -> None:
    sound = 0.3 * torch.sin(torch.arange(round(seconds * SAMPLE_RATE)) / 5)
    media = encode_clip(None, 8.0, sound)
    (tmp_path / "a.m4a").write_bytes(media)
    clip = Clip(key="a", path=str(tmp_path / "a.m4a"), start_seconds=1.0, end_seconds=3.0, may_be_cut=True)
    found = read_clip(clip)
    assert (found == media) != is_cut
    assert probe(found).duration_seconds == pytest.approx(2.0 if is_cut else seconds, abs=0.13)


def write_image(path: Path, level: int, ending: str) -> None:
    """An image file of one grey level."""
    image = av.VideoFrame.from_ndarray(np.full((30, 41, 3), level, np.uint8), format="rgb24")
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("mjpeg" if ending == "jpg" else "png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 41, 30, "yuvj420p" if ending == "jpg" else "rgb24"
        container.mux(stream.encode(image))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.filterwarnings("ignore")
def test_stills_are_spread_evenly_over_the_sound_in_the_order_of_their_numbers(tmp_path: Path, ending: str) -> None:
    for number in range(12):
        (tmp_path / f"frame_{number}").mkdir()
        write_image(tmp_path / f"frame_{number}/x[1].{ending}", 20 + 15 * number, ending)
    (tmp_path / "a.m4a").write_bytes(encode_clip(None, 1.0, SOUND))
    clip = Clip(key="a", path=str(tmp_path / "a.m4a"), stills=str(tmp_path / f"frame_*/x[1].{ending}"))
    media = read_clip(clip)
    info = probe(media)
    assert (info.ending, info.width, info.height) == ("mp4", 40, 30)
    assert info.duration_seconds == pytest.approx(3.0, abs=0.1)
    frames = decode_frames(media, FrameWindow(12, 4.0, 30), 0.1)
    levels = frames.float().mean((1, 2, 3))
    assert torch.allclose(levels, 20 + 15.0 * torch.arange(12), atol=5)
    assert len(decode_audio(media, 9.0)) >= len(SOUND)
    with pytest.raises(DecodeError, match="missing: no image file"):
        read_clip(Clip(key="a", path=str(tmp_path / "a.m4a"), stills=str(tmp_path / "none_*.jpg")))


def packets_of(media: bytes) -> list[tuple[Fraction, bool]]:
    """Time and whether a decoder can begin there, of every picture in the order of display."""
    with av.open(io.BytesIO(media)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    return sorted((p.pts * p.time_base, bool(p.is_keyframe)) for p in packets)


def test_training_makes_clips_short_small_and_easy_to_enter(tmp_path: Path) -> None:
    frames = grey_levels(120, 300, 402)
    (tmp_path / "a.mp4").write_bytes(encode_clip(frames, 60.0, SOUND[:1].repeat(2 * SAMPLE_RATE)))
    clip = Clip(key="a", path=str(tmp_path / "a.mp4"))
    media = read_clip(clip, target_of("training", 1.5))
    info = probe(media)
    assert (info.width, info.height) == (344, 256)
    assert info.duration_seconds == pytest.approx(1.5, abs=0.15)
    packets = packets_of(media)
    assert len(packets) == 45  # every second one of 60 a second
    steps = [float(after[0] - before[0]) for before, after in pairwise(packets)]
    assert max(steps) - min(steps) < 1e-4
    keys = [number for number, (_, is_key) in enumerate(packets) if is_key]
    assert keys == list(range(0, 45, 16))
    with av.open(io.BytesIO(media)) as container:
        audio = container.streams.audio[0]
        assert (audio.rate, audio.layout.nb_channels, audio.codec_context.name) == (SAMPLE_RATE, 1, "aac")
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert read_clip(clip, target_of("training", 1.5)) == media
    assert probe(read_clip(clip, TRAINING)).duration_seconds == pytest.approx(2.0, abs=0.15)


def test_training_keeps_small_pictures_and_uneven_times(tmp_path: Path) -> None:
    """A clip of variable frame rate keeps the time of each frame, and is not enlarged."""
    file, times = io.BytesIO(), [0, 40, 50, 170, 210, 400, 430]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 62, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, milliseconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 62, 3), 30 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "a.mp4").write_bytes(file.getvalue())
    media = read_clip(Clip(key="a", path=str(tmp_path / "a.mp4")), TRAINING)
    assert (probe(media).width, probe(media).height) == (62, 48)
    assert [round(1000 * float(time)) for time, _ in packets_of(media)] == times


def test_spans_in_training_are_cut_from_their_start(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_clip(grey_levels(64), 8.0, None))
    clip = Clip(key="a", path=str(tmp_path / "a.mp4"), start_seconds=3.0, end_seconds=7.0)
    assert locate(clip, target_of("training", 2.0)).span == (3.0, 5.0)
    assert locate(clip, TRAINING).span == (3.0, 7.0)
    levels = decode_frames(read_clip(clip, target_of("training", 2.0)), FrameWindow(2, 1.0, 32), 0.01).float()
    assert torch.allclose(levels.mean((1, 2, 3)), 20 + 200 * torch.tensor([24.0, 32.0]) / 64, atol=4)


def test_the_same_span_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    """x264's macroblock tree does not; a third of these clips would differ."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (8, 3, 12, 16), generator=generator, dtype=torch.uint8)
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_clip(coarse.repeat_interleave(4, 2).repeat_interleave(4, 3), 8.0, None, quality=12))
    for encoding in (encodings.KEEP_PICTURE, encodings.TRAINING):
        assert len({cut_clip(str(path), 0.0, None, encoding) for _ in range(40)}) == 1


def test_presets_that_do_not_exist_or_make_no_sense() -> None:
    for arguments, message in (
        (("tiny", None), "no such preset; choose one of copy, training"),
        (("copy", 3.0), "whole files are copied as they are"),
        (("training", 0.0), "longer than nothing"),
    ):
        with pytest.raises(UserError, match=message):
            target_of(*arguments)


def test_training_turns_rotated_pictures_upright(tmp_path: Path) -> None:
    stored = grey(30, 400, 600)
    stored[:100, :100] = 230  # a bright corner, top left as stored
    (tmp_path / "a.mp4").write_bytes(make_media("mp4", Pictures([stored] * 4, Fraction(8), rotation=90)))
    media = read_clip(Clip(key="a", path=str(tmp_path / "a.mp4")), TRAINING)
    assert (probe(media).width, probe(media).height) == (256, 384)
    frame = decode_frames(media, FrameWindow(1, 1.0, 256))[0].float().mean(0)
    assert frame[-40:, :40].mean() > 200  # counter-clockwise
    assert frame[:40].mean() < 60
