"""Synthetic clips: repeatable to the byte, and the shared factors measurable in both the sound and the picture."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from mavil.data.media import FrameWindow, decode_audio, decode_frames
from mavil.data.synthetic import (
    FRAMES_PER_SECOND,
    PITCH_HZ,
    SIZE,
    class_of,
    draw_factors,
    list_synthetic,
    make_synthetic_shards,
    read_synthetic,
    synthetic_clip,
)
from mavil.data.synthetic_families import FAMILIES
from mavil.structs import SAMPLE_RATE, UserError

NUM_CLIPS = 48
"""Six of each class."""


@cache
def decoded(number: int) -> tuple[np.ndarray, np.ndarray]:
    """``[T, SIZE, SIZE]`` how far each pixel is from the first frame, and ``[L]`` sound, from the real media file."""
    media = read_synthetic(list_synthetic(1, seed=7, first=number)[0])
    frames = decode_frames(media, FrameWindow(32, FRAMES_PER_SECOND, SIZE)).float()
    return (frames - frames[0]).abs().amax(1).numpy(), decode_audio(media, 4.0).numpy()


def shape_of(number: int) -> np.ndarray:
    """``[T, SIZE, SIZE]`` bool: where the object is."""
    return decoded(number)[0] > 70


def loudest(number: int) -> np.ndarray:
    """The sound's root mean square in blocks of 5 ms."""
    return np.sqrt(np.square(decoded(number)[1].reshape(-1, 80)).mean(1))


def rank_correlation(first: list[float], second: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_clips_are_repeatable_and_stand_alone() -> None:
    alone, among = list_synthetic(1, seed=5, first=6)[0], list_synthetic(9, seed=5)[6]
    assert alone == among
    assert read_synthetic(alone) == read_synthetic(among)
    assert read_synthetic(alone) != read_synthetic(list_synthetic(1, seed=6, first=6)[0])


def test_shards_of_one_seed_are_equal(tmp_path_factory: pytest.TempPathFactory) -> None:
    folders = [tmp_path_factory.mktemp("shards") for _ in range(2)]
    first, second = (make_synthetic_shards(3, folder, seed=2, show_progress=False) for folder in folders)
    assert first.shards == second.shards


def test_metadata_keeps_every_factor_as_text() -> None:
    clip = list_synthetic(1, seed=0, first=3)[0]
    factors = draw_factors(0, 3)
    assert clip.labels == ("chirp_up",)
    assert float(clip.metadata["onset_seconds"]) == factors.onset_seconds
    assert float(clip.metadata["pitch_hz"]) == pytest.approx(factors.pitch_hz, rel=1e-5)
    assert {"loudness", "rate_hz", "hue", "horizontal", "noise"} < set(clip.metadata)
    assert clip.metadata == synthetic_clip(0, 3).metadata
    assert all(isinstance(value, str) for value in clip.metadata.values())


def test_classes_are_balanced_and_factors_fill_their_ranges() -> None:
    clips = list_synthetic(800, seed=0)
    assert {label for clip in clips for label in clip.labels} == set(FAMILIES)
    assert all(clip.labels == (class_of(number),) for number, clip in enumerate(clips))
    factors = [draw_factors(0, number) for number in range(800)]
    onsets = [f.onset_seconds for f in factors]
    assert min(onsets) >= 0.2
    assert max(onsets) <= 2.5
    pitches = np.log([f.pitch_hz for f in factors])
    assert np.mean(pitches < np.log(PITCH_HZ).mean()) == pytest.approx(0.5, abs=0.06)
    values = np.array([list(vars(f).values()) for f in factors])
    links = np.corrcoef(values.T) - np.eye(values.shape[1])
    assert abs(links).max() < 0.13, "factors are drawn independently of each other"


@pytest.mark.parametrize("number", range(16))
def test_sound_and_shape_begin_together(number: int) -> None:
    seen = int(shape_of(number).any((1, 2)).argmax()) / FRAMES_PER_SECOND
    loud = loudest(number)
    heard = int((loud > 4 * loud[:30].mean()).argmax()) * 80 / SAMPLE_RATE
    onset = draw_factors(7, number).onset_seconds
    assert seen == onset
    assert heard == pytest.approx(onset, abs=0.03)
    assert abs(seen - heard) < 0.15


def test_higher_sounds_are_higher_in_the_picture() -> None:
    heights, pitches = [], []
    for number in range(NUM_CLIPS):
        shape, waveform = shape_of(number), decoded(number)[1]
        heights.append(-float(np.nonzero(shape)[1].mean()))
        power = np.square(np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))))
        octaves = np.log2(np.maximum(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE), 50))
        pitches.append(float((octaves * power).sum() / power.sum()))
    assert rank_correlation(heights, pitches) > 0.9


def test_louder_sounds_are_larger_within_a_class() -> None:
    for family in range(len(FAMILIES)):
        numbers = range(family, NUM_CLIPS, len(FAMILIES))
        sizes = [np.log(shape_of(number).sum((1, 2)).max()) for number in numbers]
        peaks = [np.log(np.abs(decoded(number)[1]).max()) for number in numbers]
        assert np.corrcoef(sizes, peaks)[0, 1] > 0.9, class_of(family)


def test_faster_beats_move_faster() -> None:
    """Rise time of the triangle and of the chirp are one factor: compare measured picture speed with the drawn rate."""
    speeds, rates = [], []
    for number in range(3, 120, 8):  # chirp_up, whose triangle rises
        factors = draw_factors(7, number)
        shape = shape_of(number)[round(factors.onset_seconds * FRAMES_PER_SECOND) :]
        rows = np.array([np.nonzero(frame)[0].mean() for frame in shape])
        speeds.append(float(np.median(-np.diff(rows))))
        rates.append(factors.rate_hz)
    assert rank_correlation(speeds, rates) > 0.9


def test_objects_stand_out_and_can_be_seen_at_sixty_four_pixels() -> None:
    for number in range(16):
        clip = synthetic_clip(7, number)
        frames = clip.frames.float()
        shape = torch.from_numpy(shape_of(number)[-1])
        assert frames[-1].amax(0)[shape].mean() > 2 * frames[0].amax(0).mean()
        assert shape.float().mean() * 64 * 64 > 0.25 * 16 * 16, "at least a quarter of a 16-pixel patch"


def test_waveforms_stay_in_range() -> None:
    for number in range(16):
        clip = synthetic_clip(7, number)
        assert clip.waveform.shape == (4 * SAMPLE_RATE,)
        assert clip.frames.shape == (32, 3, SIZE, SIZE)
        assert clip.waveform.abs().max() < 1.0


def test_impossible_numbers_of_clips() -> None:
    with pytest.raises(UserError, match="at least 1 clip"):
        list_synthetic(0, seed=0)
    with pytest.raises(UserError, match="from number -1"):
        list_synthetic(1, seed=0, first=-1)
