"""Files and what is in memory give the same windows."""

from __future__ import annotations

import io
import pickle
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mavil.data.media.picture_track import FrameWindow
from mavil.embedder.reading import Reader
from mavil.embedder.windows import Span
from mavil.structs import UserError
from tests.embedder.conftest import FPS, distance, film, media, short_recipe, sound

SOUND = Reader({"audio": 1.0})
FILM = Reader({"video": 0.5}, FrameWindow(4, 8.0, 64))


def wav(samples: np.ndarray, rate: int) -> bytes:
    """16-bit stereo from ``[L, 2]``."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_samples_at_any_rate_are_those_of_their_file(rate: int, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, (2 * rate, 2))
    path = tmp_path / "noise.wav"
    path.write_bytes(wav(samples, rate))
    given: list[Any] = [samples.T / 32768, torch.tensor(samples.T / 32768)]
    for source in given:
        held, read = SOUND.open(source, rate=rate), SOUND.open(path)
        assert held.duration_seconds == pytest.approx(read.duration_seconds, abs=0.001)
        for span in (Span(0.0, 1.0), Span(0.7, 1.7)):
            left, right = held.sample(span).waveform, read.sample(span).waveform
            assert left is not None
            assert right is not None
            assert len(left) == len(right) == 16_000
            assert distance(left, right) < (1e-6 if span.start == 0 else 1e-3)  # decoding began elsewhere


def test_frames_are_those_on_screen_and_come_round_again(tmp_path: Path) -> None:
    clip = FILM.open(film(0, 6), frames_per_second=FPS)
    assert clip.duration_seconds == 0.75
    sample = clip.sample(Span(0.5, 1.0))
    assert sample.frames is not None
    # 96 pixels are shrunk to 64; the frames are 4, 5 and again 0, 1.
    assert sample.frames.shape == (4, 3, 64, 64)
    first = FILM.open(film(0, 6), frames_per_second=FPS).sample(Span(0.0, 0.5)).frames
    assert first is not None
    assert torch.equal(sample.frames[2:], first[:2])
    faster = FILM.open(film(0, 32)[::2], frames_per_second=FPS / 2).sample(Span(1.0, 1.5)).frames
    assert faster is not None
    assert torch.equal(faster[0], faster[1])
    assert not torch.equal(faster[1], faster[2])
    (tmp_path / "film.mp4").write_bytes(media())
    decoded = FILM.open(tmp_path / "film.mp4").sample(Span(1.0, 1.5)).frames
    held = FILM.open(film(), frames_per_second=FPS).sample(Span(1.0, 1.5)).frames
    assert decoded is not None
    assert held is not None
    assert (decoded.float() - held.float()).abs().mean() < 8  # the codec loses a little; another frame differs by more


def test_a_reader_can_be_sent_to_another_process() -> None:
    reader = pickle.loads(pickle.dumps(Reader.of(short_recipe())))
    clip = reader.open(media())
    assert clip.modalities == ("audio", "video")
    assert reader.window_seconds == 1.0
    assert clip.sample(clip.spans()[0]).frames is not None
    pair = reader.open((media(1), film(0, 8)), frames_per_second=FPS)
    assert distance(pair.sample(Span(0.0, 1.0)).waveform, reader.open(media(1)).sample(Span(0.0, 1.0)).waveform) == 0
    assert Reader.of(short_recipe(), ("audio",)).open(media()).modalities == ("audio",)


@pytest.mark.parametrize(
    ("clip", "rate", "told"),
    [
        (np.zeros(100, np.int16), 16_000, "sound of type int16: .*divide 16-bit ones by 32768"),
        (torch.zeros(2, 3, 4), 16_000, r"sound of shape \[2, 3, 4\]"),
        (torch.zeros(16_000, 2), 16_000, r"sound of shape \[16000, 2\]: give \[samples\] or \[channels, samples\]"),
        (torch.zeros(100), None, "the rate of the sound is not known: give rate="),
        (torch.zeros(100), 0, "rate=0"),
        (torch.zeros(100), 44_100.5, r"rate=44100\.5"),
        (torch.zeros(100), "16k", "rate='16k'"),
        (torch.zeros(1, 0), 16_000, "0 samples"),
        (torch.tensor([0.0, torch.nan]), 16_000, "NaN or infinite"),
        (torch.tensor([0.0, 9000.0]), 16_000, r"reaches from 0 to 9000: samples lie in \[-1, 1\]"),
        ([0.0, 0.1], 16_000, "a list is no sound"),
        (np.array(["a"]), 16_000, "an array of <U1 is no sound"),
        ((None, None), None, r"give \(sound, film\), at most one of them None"),
        (b"", None, "no bytes"),
    ],
)
def test_what_is_no_sound_is_told(clip: Any, rate: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        SOUND.open(clip, rate=rate)


@pytest.mark.parametrize(
    ("clip", "rate", "told"),
    [
        (torch.zeros(4, 32, 32, 3), 8, r"type float32: give \[frames, rows, columns, 3\] of uint8"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), 8, r"a film of shape \[4, 3, 32, 32\]"),
        (torch.zeros(0, 32, 32, 3, dtype=torch.uint8), 8, "is empty"),
        (torch.zeros(4, 32, 32, 3, dtype=torch.uint8), None, "give frames_per_second="),
        (torch.zeros(4, 32, 32, 3, dtype=torch.uint8), -1, "frames_per_second=-1"),
    ],
)
def test_what_is_no_film_is_told(clip: Any, rate: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        FILM.open(clip, frames_per_second=rate)


def test_sound_is_cut_at_full_scale_as_in_files() -> None:
    waveform = SOUND.open(torch.tensor([0.5, 1.5, -2.0]), rate=16_000).sample(Span(0.0, 1.0)).waveform
    assert waveform is not None
    assert waveform.tolist() == [0.5, 1.0, -1.0]


def test_a_file_of_no_length_is_told() -> None:
    with pytest.raises(UserError, match="leave it out"):
        SOUND.open(wav(np.zeros((0, 1)), 16_000))
    assert SOUND.open(wav(np.zeros((1, 1)), 16_000)).spans() == [Span(0.0, pytest.approx(1 / 16_000, abs=1e-6))]
    assert sound(0, 1.0).shape == (16_000,)


def test_windows_taken_together_are_those_taken_alone(tmp_path: Path) -> None:
    """Twelve windows in pieces of eight, with and without gaps; sound that ends amid them."""
    rate = 22_050
    path = tmp_path / "noise.wav"
    path.write_bytes(wav(np.random.default_rng(0).integers(-9000, 9000, (6 * rate, 1)), rate))
    clip = SOUND.open(path)
    for hop in (0.45, 2.5):
        spans = clip.spans(hop)
        for span, sample in zip(spans, clip.samples(spans), strict=True):
            alone = clip.sample(span).waveform
            assert alone is not None
            assert sample.waveform is not None
            assert len(sample.waveform) == len(alone) == 16_000
            assert (sample.waveform - alone).abs()[100:-100].max() < 1e-4
    both = Reader.of(short_recipe()).open(media())
    spans = both.spans(0.5)
    for span, sample in zip(spans, both.samples(spans), strict=True):
        single = both.sample(span)
        assert sample.frames is not None
        assert torch.equal(sample.frames, single.frames)
        assert distance(sample.waveform, single.waveform) < 1e-4
