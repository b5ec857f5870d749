"""Clips without sound or without picture: left out, or used with what they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.data.loading.loader import Loader
from mavil.data.media import FrameWindow, decode_audio, decode_frames
from mavil.structs import Batch
from tests.data.loading.test_loader import assert_same, loader_of, spied_decoding, take
from tests.data.shard_files import Members, media_clip, record_bytes, write_folder

WINDOW = FrameWindow(num_frames=2, frames_per_second=4.0, short_side=16)
BOTH = ("whole0", "whole1", "whole2", "whole3", "whole4")
DEAF, BLIND = ("deaf0", "deaf1", "deaf2"), ("blind0", "blind1")
"""Those without sound, and those without picture. The records of some keep it secret."""


def clips() -> dict[str, Members]:
    whole = {key: media_clip(key) for key in BOTH}
    deaf = {key: media_clip(key, sound=False, is_told=key != "deaf1") for key in DEAF}
    blind = {key: media_clip(key, picture=False, is_told=key != "blind1") for key in BLIND}
    return {**whole, **deaf, **blind}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = clips()
    order = ["whole0", "deaf0", "deaf1", "blind0", "whole1", "whole2", "blind1", "whole3", "deaf2", "whole4"]
    shards = [{key: made[key] for key in order[:5]}, {key: made[key] for key in order[5:]}]
    return write_folder(tmp_path_factory.mktemp("incomplete"), shards)


def keeping(folder: Path, *, keeps: bool = True, hidden: tuple[str, ...] = (), **settings: Any) -> Loader:
    chosen = {"modalities": ("audio", "video"), "frame_window": WINDOW, "audio_seconds": 0.5, "batch_size": 3}
    decoding = {"keeps_incomplete": keeps, "hidden": hidden}
    return loader_of(folder, **{**chosen, "decoding": decoding, "max_skip_ratio": 0.6, **settings})


def rows(batches: list[Batch]) -> dict[str, dict[str, Any]]:
    """By key: the seed, the sound and the frames without padding; ``None`` for a modality said to be absent."""
    found = {}
    for batch in batches:
        assert batch.waveforms is not None
        assert batch.waveform_lengths is not None
        assert batch.frames is not None
        assert batch.frame_sizes is not None
        for row, key in enumerate(batch.keys):
            (height, width), length = batch.frame_sizes[row].tolist(), int(batch.waveform_lengths[row])
            sound: Tensor | None = batch.waveforms[row, :length]
            frames: Tensor | None = batch.frames[row, :, :, :height, :width]
            if batch.audio_present is not None and not batch.audio_present[row]:
                assert length == 0
                assert batch.waveforms[row].eq(0).all()
                sound = None
            if batch.video_present is not None and not batch.video_present[row]:
                assert batch.frames[row].eq(0).all()
                frames = None
            found[key] = {"seed": int(batch.seeds[row]), "audio": sound, "video": frames}
    return found


def assert_same_rows(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    assert left.keys() == right.keys()
    for key, values in left.items():
        for name, value in values.items():
            other = right[key][name]
            assert type(value) is type(other), (key, name)
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, (key, name)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_clip_is_used_with_what_it_has(folder: Path, num_workers: int) -> None:
    loader = keeping(folder, training=False, num_workers=num_workers)
    found = rows(list(loader))
    assert sorted(found) == sorted((*BOTH, *DEAF, *BLIND))
    media = {key: next(iter(members.values())) for key, members in clips().items()}
    for key, row in found.items():
        assert (row["audio"] is None) == (key in DEAF)
        assert (row["video"] is None) == (key in BLIND)
        if key in BOTH:
            assert torch.equal(row["audio"], decode_audio(media[key], 0.5))
        if key not in BLIND:
            assert torch.equal(row["video"], decode_frames(media[key], WINDOW))
    assert loader.skip_counts == {}
    for _ in range(2):  # counted anew in every pass
        assert {name: n for name, n in loader.counts.items() if name.startswith("without")} == {
            "without_audio": 3,
            "without_video": 2,
        }
        list(loader)


def test_they_cannot_be_used_unless_that_is_asked_for(folder: Path) -> None:
    loader = keeping(folder, keeps=False, training=False)
    batches = list(loader)
    assert sorted(key for batch in batches for key in batch.keys) == sorted(BOTH)
    assert all(batch.audio_present is None and batch.video_present is None for batch in batches)
    assert loader.skip_counts == {"no_audio": 3, "no_video": 2}
    assert set(loader.counts) == {"skipped_no_audio", "skipped_no_video", "samples", "bytes_read"}


def test_whole_clips_are_the_same_whoever_else_is_kept(folder: Path) -> None:
    alone = rows(list(keeping(folder, keeps=False, training=False)))
    among = rows(list(keeping(folder, training=False)))
    assert_same_rows(alone, {key: among[key] for key in BOTH})


def test_a_batch_without_gaps_has_no_flags(tmp_path: Path) -> None:
    write_folder(tmp_path, [{key: media_clip(key) for key in BOTH}])
    assert_same(
        list(keeping(tmp_path, training=False)),
        list(keeping(tmp_path, keeps=False, training=False, max_skip_ratio=0.0)),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_goes_on_exactly_in_the_middle(folder: Path, num_workers: int) -> None:
    whole = take(keeping(folder, num_workers=num_workers), 12)
    assert any(batch.audio_present is not None for batch in whole)
    for done in (1, 4, 5):
        again = keeping(folder, num_workers=num_workers, places=[whole[done - 1].position])
        assert_same(take(again, 12 - done), whole[done:])


def test_batches_that_nobody_sounds_or_shows_in(folder: Path) -> None:
    batches = {batch.keys[0]: batch for batch in keeping(folder, training=False, batch_size=1)}
    deaf, blind = batches["deaf0"], batches["blind0"]
    assert deaf.waveforms is not None
    assert deaf.waveforms.shape == (1, 1)
    assert blind.frames is not None
    assert blind.frames.shape == (1, 2, 3, 1, 1)
    assert_same_rows(rows(list(batches.values())), rows(list(keeping(folder, training=False))))


def test_a_hidden_modality_is_not_decoded_and_absent_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied_decoding(monkeypatch)
    loader = keeping(folder, keeps=False, hidden=("video",), training=False)
    batches = list(loader)
    # Without picture is no reason to leave a clip out here.
    assert sorted(key for batch in batches for key in batch.keys) == sorted((*BOTH, *BLIND))
    assert loader.skip_counts == {"no_audio": 3}
    assert all(batch.video_present is not None and not batch.video_present.any() for batch in batches)
    assert all(batch.frames is not None and batch.audio_present is None for batch in batches)
    assert calls
    assert all(frames is None for _, _, frames, _ in calls)


def test_a_modality_alone_lies_in_the_middle_of_its_own_window(tmp_path: Path) -> None:
    # The frames take half a second, the sound 1.5: without sound the frames' window is the longer one, and the only one.
    write_folder(
        tmp_path,
        [{"told": media_clip("same", 2.0, sound=False), "secret": media_clip("same", 2.0, sound=False, is_told=False)}],
    )
    found = rows(list(keeping(tmp_path, training=False, audio_seconds=1.5)))
    media = media_clip("same", 2.0, sound=False)["mp4"]
    assert torch.equal(found["told"]["video"], decode_frames(media, WINDOW, start_seconds=0.75))
    assert torch.equal(found["secret"]["video"], found["told"]["video"])
    drawn = rows(take(keeping(tmp_path, audio_seconds=1.5, batch_size=2), 1))
    assert all(row["video"].shape == (2, 3, 16, 24) for row in drawn.values())


def test_a_clip_with_neither_cannot_be_used(tmp_path: Path) -> None:
    record = record_bytes("x", 0.5).replace(b'"has_audio": true', b'"has_audio": false')
    write_folder(tmp_path, [{"good": media_clip("good"), "nothing": {"mp4": media_clip("x")["mp4"], "json": record}}])
    loader = keeping(tmp_path, training=False)
    assert [key for batch in loader for key in batch.keys] == ["good"]
    assert loader.skip_counts == {"empty": 1}


def test_other_faults_are_no_missing_modality(tmp_path: Path) -> None:
    broken = {"mp4": media_clip("x")["mp4"][:200], "json": media_clip("x")["json"]}
    write_folder(tmp_path, [{"good": media_clip("good"), "broken": broken}])
    loader = keeping(tmp_path, training=False)
    assert [key for batch in loader for key in batch.keys] == ["good"]
    assert loader.skip_counts == {"undecodable": 1}


def test_the_cache_tells_a_clip_without_sound_from_one_with(folder: Path) -> None:
    cached = keeping(folder, training=False, cache_gib=1.0)
    first = list(cached)
    assert_same(first, list(cached))
    assert_same(first, list(keeping(folder, training=False)))
    decoder = cached._deliveries.decoder
    # What is wanted of a clip is part of what it is remembered by.
    assert {len(key) for key in decoder.cache.kept} == {3, 4}
