"""The loader on real shards: content, order, continuation, what is left out, and complaints."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.data.labels import Vocabulary
from mavil.data.loading.loader import Loader, build_loader
from mavil.data.loading.samples import BYTES_PER_GIB, Cache, ClipDecoder
from mavil.data.loading.skips import Skip, SkipPolicy, SkipTally
from mavil.data.media import FrameWindow, SoundWindow, decode_audio, decode_clip, decode_frames, encode_clip
from mavil.seeds import sample_seed
from mavil.structs import Batch, UserError
from tests.data.shard_files import Members, record_bytes, sound_clip, wav_bytes, write_folder

WINDOW = FrameWindow(num_frames=2, frames_per_second=4.0, short_side=16)
BROKEN: Members = {"wav": b"RIFF no sound at all", "json": record_bytes("broken")}


def sounds(folder: Path, *, shards: int, clips: int, broken: tuple[str, ...] = (), **metadata: str) -> Path:
    """A folder of sound clips ``s0c0``, ``s0c1`` ... of different lengths, some of them undecodable."""

    def members(key: str, clip: int) -> Members:
        if key in broken:
            return BROKEN
        return sound_clip(key, 0.03 + 0.005 * (clip % 3), labels=[f"class{clip % 3}"], **metadata)

    return write_folder(
        folder,
        [{f"s{shard}c{clip}": members(f"s{shard}c{clip}", clip) for clip in range(clips)} for shard in range(shards)],
    )


def picture_clip(key: str, seconds: float, height: int, width: int) -> Members:
    generator = torch.Generator().manual_seed(sample_seed(key) % 2**31)
    frames = torch.randint(
        0, 256, (int(8 * seconds), 3, height // 8, width // 8), generator=generator, dtype=torch.uint8
    )
    frames = frames.repeat_interleave(8, 2).repeat_interleave(8, 3)
    media = encode_clip(frames, 8.0, torch.randn(int(16000 * seconds), generator=generator) * 0.1)
    return {"mp4": media, "json": record_bytes(key, seconds).replace(b'"has_video": false', b'"has_video": true')}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds(tmp_path_factory.mktemp("sounds"), shards=4, clips=6, broken=("s1c2", "s3c0"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [("short", 0.5, 32, 48), ("long", 2.0, 48, 32), ("wide", 1.5, 32, 64), ("tall", 1.0, 64, 32)]
    return write_folder(
        tmp_path_factory.mktemp("pictures"), [{key: picture_clip(key, *sizes) for key, *sizes in clips}]
    )


def loader_of(
    folder: Path | str,
    *,
    modalities: tuple[str, ...] = ("audio",),
    audio_seconds: float = 1.0,
    frame_window: FrameWindow | None = None,
    training: bool = True,
    seed: int = 3,
    vocabulary: Vocabulary | None = None,
    label_field: str | None = None,
    cache_gib: float = 0.0,
    max_skip_ratio: float = 0.5,
    decoding: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Loader:
    decoder = ClipDecoder(
        audio_seconds if "audio" in modalities else None,
        frame_window if "video" in modalities else None,
        seed,
        training,
        vocabulary=vocabulary,
        label_field=label_field,
        cache=Cache(int(cache_gib * BYTES_PER_GIB)),
        **(decoding or {}),
    )
    settings: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "shuffle_buffer": 5}
    return build_loader(folder, decoder, **{"skips": SkipPolicy(max_skip_ratio), **settings, **changes})


def take(loader: Loader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys == b.keys
        assert a.metadata == b.metadata
        assert a.position == b.position
        flags = ("audio_present", "video_present")
        for name in ("seeds", "waveforms", "waveform_lengths", "frames", "frame_sizes", "targets", *flags):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x, y), name


def clips_of(batches: list[Batch]) -> dict[str, tuple[int, Tensor]]:
    """Seed and waveform by key."""
    found = {}
    for batch in batches:
        assert batch.waveforms is not None
        assert batch.waveform_lengths is not None
        for row, key in enumerate(batch.keys):
            length = int(batch.waveform_lengths[row])
            assert batch.waveforms[row, length:].eq(0).all()
            found[key] = int(batch.seeds[row]), batch.waveforms[row, :length]
    return found


# --- content and order ---


def test_a_batch_holds_what_the_shards_hold(folder: Path) -> None:
    batches = take(loader_of(folder), 6)
    assert [len(batch) for batch in batches] == [4] * 6
    for key, (_, waveform) in clips_of(batches).items():
        clip = int(key[-1])
        assert torch.equal(waveform, decode_audio(wav_bytes(key, 0.03 + 0.005 * (clip % 3)), 1.0))
    assert batches[0].frames is None
    assert batches[0].targets is None


def test_a_sample_does_not_depend_on_the_number_of_workers(folder: Path) -> None:
    def whole_set(num_workers: int) -> tuple[list[Batch], dict[str, tuple[int, Tensor]]]:
        batches = list(loader_of(folder, num_workers=num_workers, training=False))
        return batches, clips_of(batches)

    none, one, two = (whole_set(num_workers) for num_workers in (0, 1, 2))
    assert_same(none[0], one[0])
    assert len(none[1]) == 22
    for clips in (one[1], two[1]):
        assert clips.keys() == none[1].keys()
        assert all(seed == none[1][key][0] and torch.equal(x, none[1][key][1]) for key, (seed, x) in clips.items())


def test_training_seeds_are_of_seed_epoch_and_key(folder: Path) -> None:
    for num_workers in (0, 2):
        batches = take(loader_of(folder, num_workers=num_workers), 20)
        pairs = [pair for batch in batches for pair in zip(batch.keys, batch.seeds.tolist(), strict=True)]
        assert all(seed in {sample_seed(3, epoch, key) for epoch in range(9)} for key, seed in pairs)
        # No clip comes twice in one epoch.
        assert len(set(pairs)) == len(pairs) == 80


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_generator_is_left_alone(folder: Path, num_workers: int) -> None:
    before = torch.get_rng_state()
    take(loader_of(folder, num_workers=num_workers), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_uses_epoch_zero_every_time(folder: Path) -> None:
    loader = loader_of(folder, training=False, num_workers=1)
    first, second = list(loader), list(loader)
    assert_same(first, second)
    assert first[0].seeds.tolist() == [sample_seed(3, 0, key) for key in first[0].keys]
    assert [len(batch) for batch in first] == [4, 4, 4, 4, 4, 2]
    assert loader.num_clips == 24
    assert loader.skip_counts == {"undecodable": 2}


@pytest.mark.parametrize("shards", [1, 7])
def test_seven_clips_on_two_ranks_with_two_workers_come_once_each(tmp_path: Path, shards: int) -> None:
    sounds(tmp_path, shards=shards, clips=7 // shards)
    counts: Counter[str] = Counter()
    for rank in range(2):
        loader = loader_of(tmp_path, training=False, num_workers=2, rank=rank, world_size=2, batch_size=3)
        counts.update(key for batch in loader for key in batch.keys)
    assert sorted(counts.values()) == [1] * 7


# --- continuing ---


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_continuing_from_a_position_is_exact(folder: Path, num_workers: int) -> None:
    whole = take(loader_of(folder, num_workers=num_workers), 14)
    for done in (1, 4, 7):
        position = whole[done - 1].position
        again = loader_of(folder, num_workers=num_workers, places=[position])
        assert_same(take(again, 14 - done), whole[done:])


def test_continuing_amid_reports_without_a_batch(tmp_path: Path) -> None:
    # One worker meets so many unusable clips that it reports between its batches: its turns must not shift.
    usable = {f"g{i}": sound_clip(f"g{i}") for i in range(8)}
    write_folder(tmp_path, [usable, {f"b{i}": BROKEN for i in range(37)} | {"lonely": sound_clip("lonely")}])
    settings: dict[str, Any] = {"num_workers": 2, "max_skip_ratio": 1.0, "batch_size": 3}
    loader = loader_of(tmp_path, **settings)
    whole = take(loader, 16)
    assert loader.skip_counts["undecodable"] > 64
    assert any(worker["num_reports"] for batch in whole if batch.position for worker in batch.position["workers"])
    for done in range(1, 12):
        assert_same(take(loader_of(tmp_path, places=[whole[done - 1].position], **settings), 3), whole[done : done + 3])


def test_continuing_in_another_order_is_refused(folder: Path, tmp_path: Path) -> None:
    position = take(loader_of(folder, num_workers=0), 1)[0].position
    with pytest.raises(UserError, match=r"seed was 3, is 4"):
        loader_of(folder, seed=4, places=[position])
    with pytest.raises(UserError, match=r"num_shards was 4, is 3"):
        loader_of(sounds(tmp_path, shards=3, clips=8), places=[position])
    assert take(loader_of(folder, num_workers=1, places=[position]), 1)


def test_ranks_share_an_epoch_without_overlap(folder: Path) -> None:
    keys = [
        key
        for rank in range(2)
        for batch in take(loader_of(folder, rank=rank, world_size=2, batch_size=5), 2)
        for key in batch.keys
    ]
    assert len(keys) == 20
    assert len(set(keys)) == 20


# --- pictures, windows, cache ---


def test_frames_of_different_sizes_are_padded_right_and_below(pictures: Path) -> None:
    (batch,) = loader_of(pictures, modalities=("audio", "video"), frame_window=WINDOW, training=False)
    assert batch.frames is not None
    assert batch.frame_sizes is not None
    assert batch.frames.shape == (4, 2, 3, 32, 32)
    assert batch.frames.dtype == torch.uint8
    assert batch.frame_sizes.tolist() == [[16, 24], [24, 16], [16, 32], [32, 16]]
    media = picture_clip("long", 2.0, 48, 32)["mp4"]
    expected = decode_frames(media, WINDOW, start_seconds=(2.0 - 0.5) / 2)
    assert torch.equal(batch.frames[1, :, :, :24, :16], expected)
    assert batch.frames[1, :, :, :, 16:].eq(0).all()
    assert batch.frames[1, :, :, 24:].eq(0).all()


def test_only_wanted_modalities_are_decoded(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied_decoding(monkeypatch)
    (batch,) = loader_of(pictures, modalities=("video",), frame_window=WINDOW, training=False)
    assert batch.waveforms is None
    assert {(sound, frames) for _, sound, frames, _ in calls} == {(None, WINDOW)}
    calls.clear()
    (batch,) = loader_of(pictures, modalities=("audio",), frame_window=WINDOW, training=False)
    assert batch.frames is None
    assert all(sound is not None and frames is None for _, sound, frames, _ in calls)


def spied_decoding(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, SoundWindow | None, FrameWindow | None, float]]:
    """Size of the file, windows and start of the frames of every call from now on."""
    calls = []

    def spy(
        media: bytes, sound: SoundWindow | None, frames: FrameWindow | None, start: float, backend: str
    ) -> tuple[Tensor | None, Tensor | None]:
        calls.append((len(media), sound, frames, start))
        return decode_clip(media, sound, frames, start, backend)

    monkeypatch.setattr("mavil.data.loading.samples.decode_clip", spy)
    return calls


def test_the_window_moves_within_the_clip_in_training(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied_decoding(monkeypatch)
    take(loader_of(pictures, modalities=("video",), frame_window=WINDOW), 40)
    for key, *sizes in [("short", 0.5, 32, 48), ("long", 2.0, 48, 32)]:
        size, seconds = len(picture_clip(key, *sizes)["mp4"]), sizes[0]
        starts = [start for other, _, _, start in calls if other == size]
        assert len(starts) == 40
        assert min(starts) >= 0
        assert max(starts) <= seconds - 0.5
        assert seconds == 0.5 or (len(set(starts)) == 40 and max(starts) > 1.2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cache_gib", [1.0, 5e-5])
def test_the_cache_changes_nothing(pictures: Path, training: bool, cache_gib: float) -> None:
    settings: dict[str, Any] = {"modalities": ("audio", "video"), "frame_window": WINDOW, "training": training}
    plain, cached = loader_of(pictures, **settings), loader_of(pictures, cache_gib=cache_gib, **settings)
    for _ in range(2):
        assert_same(take(plain, 4), take(cached, 4))


def test_the_cache_saves_decoding_within_its_limit(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied_decoding(monkeypatch)
    settings: dict[str, Any] = {"modalities": ("audio", "video"), "frame_window": WINDOW}
    loader = loader_of(pictures, cache_gib=1.0, training=False, **settings)
    take(loader, 1), take(loader, 1)
    assert len(calls) == 4
    calls.clear()
    # In training only a clip that is no longer than its window has one that comes again: the half second.
    take(loader_of(pictures, cache_gib=1.0, **settings), 3)
    assert len(calls) == 1 + 3 * 3
    calls.clear()
    take(loader_of(pictures, cache_gib=40_000 * 4 / 2**30, modalities=("audio",), audio_seconds=2.0), 2)
    assert len(calls) in (5, 6, 7)  # not all found room, and some did


# --- targets ---


def test_targets_are_multi_hot(folder: Path) -> None:
    vocabulary = Vocabulary(("class0", "class1", "class2"))
    for batch in loader_of(folder, training=False, vocabulary=vocabulary):
        assert batch.targets is not None
        expected = [[float(int(key[-1]) % 3 == c) for c in range(3)] for key in batch.keys]
        assert batch.targets.tolist() == expected


def test_the_class_can_come_from_a_metadata_field(tmp_path: Path) -> None:
    sounds(tmp_path, shards=1, clips=4, speaker="theo")
    (batch,) = loader_of(tmp_path, training=False, vocabulary=Vocabulary(("ann", "theo")), label_field="speaker")
    assert batch.targets is not None
    assert batch.targets.tolist() == [[0.0, 1.0]] * 4
    assert batch.metadata == [{"speaker": "theo"}] * 4
    with pytest.raises(UserError, match=r"none of 4 clips can be used \(no_label 4;"):
        list(loader_of(tmp_path, training=False, vocabulary=Vocabulary(("theo",)), label_field="place"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unknown_label_is_one_clear_line(folder: Path, num_workers: int) -> None:
    loader = loader_of(folder, training=False, vocabulary=Vocabulary(("class0", "class2")), num_workers=num_workers)
    with pytest.raises(UserError, match=r"clip s0c1 of .*: label 'class1' is none of the 2 classes") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


# --- unusable clips ---


def test_each_cause_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = record_bytes("x")
    bad: Mapping[str, Members] = {
        "garbled": BROKEN,
        "silent": {"wav": wav_bytes("x"), "json": record.replace(b'"has_audio": true', b'"has_audio": false')},
        "wordless": {"wav": wav_bytes("x")},
        "mute": {"json": record},
        "torn": {"wav": wav_bytes("x"), "json": b"{'no': json"},
        "list": {"wav": wav_bytes("x"), "json": b"[]"},
        "endless": {"wav": wav_bytes("x"), "json": record.replace(b"0.05", b"NaN")},
        "odd": {"wav": wav_bytes("x"), "json": record.replace(b'"labels": []', b'"labels": [3]')},
    }
    write_folder(tmp_path, [{**{f"good{i}": sound_clip(f"good{i}") for i in range(8)}, **bad}])
    loader = loader_of(tmp_path, training=False)
    with caplog.at_level(logging.WARNING, "mavil"):
        assert sum(len(batch) for batch in loader) == 8
    assert loader.skip_counts == {"undecodable": 1, "no_audio": 1, "no_record": 1, "no_media": 1, "bad_record": 4}
    named = {record.args[0] for record in caplog.records if isinstance(record.args, tuple)}
    assert named == set(bad)


def test_warnings_are_rationed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, [{"good": sound_clip("good"), **{f"bad{i}": BROKEN for i in range(40)}}])
    with caplog.at_level(logging.WARNING, "mavil"):
        list(loader_of(tmp_path, training=False, max_skip_ratio=1.0))
    assert len(caplog.records) == 5 + 3  # 1-5, 8, 16, 32


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_unusable_clips_end_an_evaluation(tmp_path: Path, num_workers: int) -> None:
    clips = {f"good{i}": sound_clip(f"good{i}") for i in range(6)} | {f"bad{i}": BROKEN for i in range(4)}
    write_folder(tmp_path, [clips])
    settings: dict[str, Any] = {"num_workers": num_workers, "training": False}
    with pytest.raises(
        UserError, match=r"only 6 of 10 clips can be used \(undecodable 4; data\.max_skip_ratio is 0\.39\)"
    ):
        list(loader_of(tmp_path, max_skip_ratio=0.39, **settings))
    assert sum(map(len, loader_of(tmp_path, max_skip_ratio=0.4, **settings))) == 6


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_unusable_clips_end_a_training(tmp_path: Path, num_workers: int) -> None:
    clips = {f"good{i}": sound_clip(f"good{i}") for i in range(8)} | {f"bad{i}": BROKEN for i in range(12)}
    write_folder(tmp_path, [clips])
    loader = loader_of(tmp_path, num_workers=num_workers, max_skip_ratio=0.2)
    with pytest.raises(
        UserError, match=r"only \d+ of \d+ clips can be used \(undecodable \d+; data\.max_skip_ratio is 0\.2\)"
    ):
        take(loader, 10)
    assert take(loader_of(tmp_path, max_skip_ratio=0.6), 40)


def test_chance_does_not_end_a_run() -> None:
    def feed(share: float, count: int) -> None:
        tally = SkipTally("shards", SkipPolicy(0.05), num_clips=10**6, sees_all=False)
        for block in (torch.rand(count, 5) < share).sum(1).tolist():
            tally.add(5, [Skip("undecodable", "", "k", "s")] * block)

    for _ in range(100):
        feed(0.045, 60)
    with pytest.raises(UserError, match="only"):
        feed(0.09, 600)


def test_the_first_unusable_clip_can_end_the_run(folder: Path) -> None:
    with pytest.raises(UserError, match=r"clip s1c2 of 000001.tar cannot be used \(undecodable: "):
        list(loader_of(folder, training=False, skips=SkipPolicy(stops_at_first=True)))


def test_no_skip_at_all_can_be_asked_for() -> None:
    with pytest.raises(UserError, match="only 9 of 10"):
        SkipTally("shards", SkipPolicy(0.0), num_clips=100, sees_all=True).add(10, [Skip("undecodable", "", "k", "s")])


def test_hopeless_data_end_the_run_though_no_batch_is_ever_full(tmp_path: Path) -> None:
    write_folder(tmp_path, [{f"bad{i}": BROKEN for i in range(20)}])
    for training in (True, False):
        with pytest.raises(UserError, match=r"none of (20|32) clips can be used \(undecodable"):
            take(loader_of(tmp_path, training=training, max_skip_ratio=1.0), 1)


def test_too_few_clips_for_a_batch(folder: Path) -> None:
    with pytest.raises(UserError, match=r"24 clips are fewer than one training batch of 32 \(over all ranks\)"):
        loader_of(folder, batch_size=16, rank=0, world_size=2)
    assert [len(batch) for batch in loader_of(folder, batch_size=64, training=False)] == [22]


def test_more_readers_than_shards_share_them(folder: Path) -> None:
    keys = [
        key
        for rank in range(2)
        for batch in take(loader_of(folder, num_workers=3, rank=rank, world_size=2, batch_size=1), 9)
        for key in batch.keys
    ]
    assert len(set(keys)) == len(keys) == 18


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sounds(tmp_path, shards=2, clips=4)
    victim = sorted(tmp_path.glob("*.tar"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        loader_of(tmp_path)


def decoder_of(audio_seconds: float, video_seconds: float, training: bool) -> ClipDecoder:
    window = FrameWindow(num_frames=int(2 * video_seconds), frames_per_second=2.0, short_side=32)
    return ClipDecoder(audio_seconds, window, 0, training)


def test_windows_of_one_length_are_the_same_moment() -> None:
    decoder = decoder_of(4.0, 4.0, training=True)
    starts = [decoder.starts(10.0, seed) for seed in range(200)]
    assert all(start["audio"] == start["video"] for start in starts)
    places = [start["audio"] for start in starts]
    assert 0 <= min(places) < 0.5
    assert 5.5 < max(places) <= 6.0
    assert decoder_of(4.0, 4.0, training=False).starts(10.0, 0) == {"audio": 3.0, "video": 3.0}


@pytest.mark.parametrize(("audio_seconds", "video_seconds"), [(10.0, 4.0), (2.0, 4.0)])
def test_the_shorter_window_lies_inside_the_longer(audio_seconds: float, video_seconds: float) -> None:
    decoder = decoder_of(audio_seconds, video_seconds, training=True)
    longer, shorter = sorted({"audio": audio_seconds, "video": video_seconds}.items(), key=lambda item: -item[1])
    for seed in range(50):
        starts = decoder.starts(12.0, seed)
        assert starts[longer[0]] <= starts[shorter[0]] <= starts[longer[0]] + longer[1] - shorter[1]
    assert len({decoder.starts(12.0, seed)[shorter[0]] for seed in range(50)}) == 50


def test_a_clip_shorter_than_every_window_begins_at_its_beginning() -> None:
    assert decoder_of(4.0, 4.0, training=True).starts(2.5, 1) == {"audio": 0.0, "video": 0.0}


def test_sound_comes_from_where_the_window_is(pictures: Path) -> None:
    whole = waves(take(loader_of(pictures, training=False, audio_seconds=2.0), 1)[0])
    middle = waves(take(loader_of(pictures, training=False, audio_seconds=1.0), 1)[0])
    assert torch.equal(middle["long"], whole["long"][8000:24000])


def waves(batch: Batch) -> dict[str, Tensor]:
    assert batch.waveforms is not None
    assert batch.waveform_lengths is not None
    rows = zip(batch.keys, batch.waveforms, batch.waveform_lengths.tolist(), strict=True)
    return {key: row[:length] for key, row, length in rows}
