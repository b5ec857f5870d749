"""Several windows of a long clip in evaluation: where they lie, and that nothing else about batches changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import dataloader

from mavil.data.loading.loader import Loader
from mavil.data.loading.samples import ClipDecoder
from mavil.data.media import FrameWindow, decode_audio, decode_frames
from mavil.data.spectrogram import AudioFrontEnd, num_spectrogram_steps
from mavil.seeds import sample_seed
from mavil.structs import Batch
from tests.data.loading.test_faults import Fragile
from tests.data.loading.test_loader import assert_same, loader_of, take
from tests.data.shard_files import media_clip, sound_clip, wav_bytes, write_folder

SECONDS = {"a": 0.05, "b": 0.02, "c": 0.2, "d": 0.1, "e": 0.08, "f": 0.015, "g": 0.3, "h": 0.04}
AUDIO_SECONDS, WINDOWS = 0.02, 4
NUM_WINDOWS = {key: WINDOWS if seconds > AUDIO_SECONDS else 1 for key, seconds in SECONDS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [{key: sound_clip(key, SECONDS[key]) for key in keys} for keys in ("abcd", "efgh")]
    return write_folder(tmp_path_factory.mktemp("long"), clips)


def windowed(folder: Path, windows: int = WINDOWS, **settings: Any) -> Loader:
    chosen = {"training": False, "audio_seconds": AUDIO_SECONDS, "batch_size": 3, "decoding": {"windows": windows}}
    return loader_of(folder, **{**chosen, **settings})


def windows_of(batches: list[Batch]) -> dict[str, list[tuple[int, torch.Tensor]]]:
    """Seed and waveform of each window by key, in the order in which they come."""
    found: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for batch in batches:
        assert batch.waveforms is not None
        assert batch.waveform_lengths is not None
        for row, key in enumerate(batch.keys):
            waveform = batch.waveforms[row, : int(batch.waveform_lengths[row])]
            found.setdefault(key, []).append((int(batch.seeds[row]), waveform))
    return found


def assert_same_windows(left: list[Batch], right: list[Batch]) -> None:
    one, other = windows_of(left), windows_of(right)
    assert one.keys() == other.keys()
    for key, windows in one.items():
        assert [seed for seed, _ in windows] == [seed for seed, _ in other[key]]
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(windows, other[key], strict=True))


def test_windows_are_spread_from_the_beginning_to_the_end(folder: Path) -> None:
    found = windows_of(list(windowed(folder)))
    assert {key: len(windows) for key, windows in found.items()} == NUM_WINDOWS
    for key, windows in found.items():
        whole = decode_audio(wav_bytes(key, SECONDS[key]), 1.0)
        last = len(whole) - 320
        for number, (seed, waveform) in enumerate(windows):
            start = round(number * last / (WINDOWS - 1)) if len(windows) > 1 else 0
            assert torch.equal(waveform, whole[start : start + 320]), (key, number)
            clip_seed = sample_seed(3, 0, key)
            assert seed == (sample_seed(clip_seed, "window", number) if number else clip_seed)


def test_one_window_is_the_middle_as_ever(folder: Path) -> None:
    assert_same(list(windowed(folder, windows=1)), list(windowed(folder, decoding=None)))
    ((_, waveform),) = windows_of(list(windowed(folder, windows=1)))["g"]
    assert torch.equal(waveform, decode_audio(wav_bytes("g", 0.3), 1.0)[2240:2560])


def test_training_has_one_random_window(folder: Path) -> None:
    settings: dict[str, Any] = {"training": True, "audio_seconds": AUDIO_SECONDS, "batch_size": 3}
    assert_same(take(windowed(folder, **settings), 8), take(loader_of(folder, **settings), 8))


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 1), (0, 3), (0, 5), (0, 64), (2, 3), (2, 5)])
def test_windows_do_not_depend_on_batches_or_workers(folder: Path, num_workers: int, batch_size: int) -> None:
    loader = windowed(folder, batch_size=batch_size, num_workers=num_workers)
    batches = list(loader)
    assert_same_windows(batches, list(windowed(folder)))
    short = [batch for batch in batches if len(batch) != batch_size]
    assert len(short) <= max(1, num_workers)
    assert all(len(batch) < batch_size for batch in short)
    assert loader.counts["samples"] == sum(NUM_WINDOWS.values())


def test_the_windows_of_a_clip_stay_on_one_rank(folder: Path) -> None:
    shares = [list(windowed(folder, rank=rank, world_size=2, batch_size=2)) for rank in range(2)]
    counts = [Counter(key for batch in share for key in batch.keys) for share in shares]
    assert not counts[0].keys() & counts[1].keys()
    assert counts[0] + counts[1] == NUM_WINDOWS


@pytest.mark.parametrize("victim", ["c", "g", "h"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker_repeats_and_loses_no_window(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str, num_workers: int
) -> None:
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    loader = windowed(folder, num_workers=num_workers)
    own = loader._deliveries
    decoder = Fragile(**vars(own.decoder), victim=victim, fate="killed", times=1, notes=tmp_path)
    broken = Loader(replace(own, decoder=decoder), loader._tally, num_workers, False)
    assert_same(list(broken), list(windowed(folder, num_workers=num_workers)))
    assert list(tmp_path.iterdir())
    # Each clip was counted once, or the end of the pass would have taken the share of unusable ones from a wrong number.
    assert loader._tally._num_seen == len(SECONDS)


def test_a_window_that_cannot_be_decoded_costs_the_clip(tmp_path: Path) -> None:
    # The record claims more sound than there is: its last window begins behind the end.
    long = dict(sound_clip("long", 0.2), wav=wav_bytes("long", 0.1))
    write_folder(tmp_path, [{"good": sound_clip("good", 0.1), "long": long}])
    loader = windowed(tmp_path)
    assert {key for batch in loader for key in batch.keys} == {"good"}
    assert loader.skip_counts == {"too_short": 1}


def test_sound_and_picture_of_a_window_are_of_one_moment(tmp_path: Path) -> None:
    window = FrameWindow(num_frames=2, frames_per_second=4.0, short_side=16)
    deaf = {is_told: media_clip("deaf", 2.0, sound=False, is_told=is_told) for is_told in (True, False)}
    write_folder(tmp_path, [{"clip": media_clip("clip", 2.0), "deaf": deaf[True], "secret": deaf[False]}])
    settings: dict[str, Any] = {"modalities": ("audio", "video"), "frame_window": window, "audio_seconds": 1.0}
    decoding = {"windows": 3, "keeps_incomplete": True}
    (batch,) = windowed(tmp_path, batch_size=9, decoding=decoding, **settings)
    assert batch.keys == ["clip"] * 3 + ["deaf"] * 3 + ["secret"] * 3
    assert batch.waveforms is not None
    assert batch.frames is not None
    assert batch.audio_present is not None
    assert batch.audio_present.tolist() == [True] * 3 + [False] * 6
    media = {key: media_clip(key, 2.0, sound=key == "clip")["mp4"] for key in ("clip", "deaf")}
    for row, start in enumerate((0.0, 0.5, 1.0)):
        assert torch.equal(batch.waveforms[row], decode_audio(media["clip"], 1.0, start_seconds=start))
        assert torch.equal(batch.frames[row], decode_frames(media["clip"], window, start_seconds=1.5 * start))
    # Without sound the frames' own window is what is spread, whether the record or the file says so.
    for row, start in enumerate((0.0, 0.75, 1.5)):
        assert torch.equal(batch.frames[3 + row], decode_frames(media["deaf"], window, start_seconds=start))
        assert torch.equal(batch.frames[6 + row], batch.frames[3 + row])


def test_places() -> None:
    decoder = ClipDecoder(4.0, FrameWindow(4, 2.0, 32), 0, training=False, windows=5)
    assert decoder.places(10.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert decoder.places(4.0) == [0.0, 0.25, 0.5, 0.75, 1.0]  # the sound is taken whole, and the picture is gone over
    assert decoder.places(2.0) == [0.5]
    assert decoder.places(4.0, {"audio": 4.0}) == [0.5]
    assert decoder.places(4.0, {"video": 2.0}) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert replace(decoder, training=True).places(10.0) == [0.5]
    assert decoder.starts(10.0, 0, place=1.0) == {"audio": 6.0, "video": 8.0}
    assert decoder.starts(4.0, 0, place=0.25) == {"audio": 0.0, "video": 0.5}
    assert decoder.starts(10.0, 0) == {"audio": 3.0, "video": 4.0}


@pytest.mark.parametrize("training", [True, False])
def test_a_clip_shorter_than_the_window_is_looped_to_see_and_padded_to_hear(tmp_path: Path, training: bool) -> None:
    window = FrameWindow(num_frames=8, frames_per_second=8.0, short_side=16)
    write_folder(tmp_path, [{"short": media_clip("short", 0.25), "long": media_clip("long", 1.0)}])
    settings: dict[str, Any] = {"modalities": ("audio", "video"), "frame_window": window, "audio_seconds": 1.0}
    (batch,) = take(windowed(tmp_path, batch_size=2, training=training, **settings), 1)
    short = batch.keys.index("short")
    assert batch.frames is not None
    assert batch.waveforms is not None
    assert batch.waveform_lengths is not None
    frames = batch.frames[short]
    assert not torch.equal(frames[0], frames[1])
    assert all(torch.equal(frames[number], frames[number % 2]) for number in range(8))
    length = int(batch.waveform_lengths[short])
    assert 4000 <= length < 4000 + 1024  # AAC ends with a whole block
    assert batch.waveforms.shape[1] >= 16000
    assert batch.waveforms[short, length:].eq(0).all()
    spectrogram = AudioFrontEnd(100, 32, mean=0.0, std=0.5, roll=False, gain=False).eval()
    steps = spectrogram(batch.waveforms, batch.waveform_lengths, batch.seeds)[short, 0]
    num_real = int(num_spectrogram_steps(batch.waveform_lengths)[short])
    assert steps[:num_real].ne(0).any(dim=1).all()
    assert steps[num_real:].eq(0).all()
