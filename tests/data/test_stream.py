"""Order, split and continuation of raw clips."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mavil.data.stream import ClipStream, RawClip, ShardFile, buffer_shuffle
from mavil.structs import UserError
from tests.data.shard_files import write_tar

SIZES = (5, 3, 4, 1, 6, 2)
KEYS = [f"s{shard}.c{clip}" for shard, size in enumerate(SIZES) for clip in range(size)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[ShardFile]:
    folder = tmp_path_factory.mktemp("shards")
    files = []
    for shard, size in enumerate(SIZES):
        clips = {f"s{shard}.c{clip}": {"mp4": f"media {shard} {clip}".encode(), "json": b"{}"} for clip in range(size)}
        files.append(ShardFile(write_tar(folder / f"{shard:03}.tar", clips), size))
    return files


def training(
    shards: list[ShardFile], reader: int = 0, num_readers: int = 1, seed: int = 7, buffer: int = 4
) -> ClipStream:
    return ClipStream(shards, seed=seed, training=True, shuffle_buffer=buffer, reader=reader, num_readers=num_readers)


def one_epoch(stream: ClipStream, epoch: int) -> list[RawClip]:
    clips = []
    for clip in stream.read(epoch):
        if clip.epoch > epoch:
            return clips
        clips.append(clip)
    raise AssertionError("a training stream never ends")


@pytest.mark.parametrize("num_readers", [1, 2, 4, 6])
def test_training_yields_every_clip_once_per_epoch(shards: list[ShardFile], num_readers: int) -> None:
    for epoch in (0, 3):
        readers = [one_epoch(training(shards, reader, num_readers), epoch) for reader in range(num_readers)]
        clips = [clip for reader in readers for clip in reader]
        assert sorted(clip.key for clip in clips) == sorted(KEYS)
        assert {clip.media for clip in clips if clip.key == "s4.c2"} == {b"media 4 2"}
        for reader_clips in readers:
            assert [clip.consumed for clip in reader_clips] == list(range(1, len(reader_clips) + 1))


def test_order_depends_on_seed_and_epoch_and_nothing_else(shards: list[ShardFile]) -> None:
    def keys(seed: int, epoch: int) -> list[str]:
        return [clip.key for clip in one_epoch(training(shards, seed=seed), epoch)]

    assert keys(7, 0) == keys(7, 0)
    assert keys(7, 0) != keys(7, 1)
    assert keys(7, 0) != keys(8, 0)
    assert keys(7, 0) != KEYS


def test_the_buffer_shuffles_a_single_shard_anew_each_epoch(shards: list[ShardFile]) -> None:
    orders = {tuple(clip.key for clip in one_epoch(training(shards[4:5], buffer=6), epoch)) for epoch in range(4)}
    assert len(orders) > 1


def test_shards_are_dealt_anew_each_epoch(shards: list[ShardFile]) -> None:
    owners = {frozenset(clip.shard for clip in one_epoch(training(shards, 0, 2), epoch)) for epoch in range(6)}
    assert len(owners) > 1


@pytest.mark.parametrize("consumed", [0, 1, 9, 20, 21, 30])
def test_a_position_continues_exactly(shards: list[ShardFile], consumed: int) -> None:
    whole = list(islice(training(shards).read(), 50))
    last = whole[consumed - 1] if consumed else None
    rest = training(shards).read(last.epoch, last.consumed) if last else training(shards).read(0, 0)
    assert list(islice(rest, 50 - consumed)) == whole[consumed:]


def test_used_up_shards_are_not_opened_again(shards: list[ShardFile], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real_open = open
    monkeypatch.setattr("builtins.open", lambda path, *a: opened.append(Path(path).name) or real_open(path, *a))
    stream = training(shards, buffer=2)
    assert len(list(islice(stream.read(0, 0), 21))) == 21
    assert len(opened) == 6
    opened.clear()
    assert len(list(islice(stream.read(0, 19), 2))) == 2
    assert 1 <= len(opened) <= 3


def test_never_more_clips_are_held_than_the_buffer(shards: list[ShardFile]) -> None:
    order = buffer_shuffle(1000, 16, seed=3)
    assert sorted(order.tolist()) == list(range(1000))
    # Clip i leaves at the earliest when i - 16 have left: only then has it been read.
    assert (order <= np.arange(1000) + 16).all()
    assert abs(np.corrcoef(buffer_shuffle(1000, 1000, seed=3), np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("num_readers", [1, 4, 6, 7, 30])
def test_evaluation_yields_every_clip_once_over_all_readers(shards: list[ShardFile], num_readers: int) -> None:
    counts: Counter[str] = Counter()
    for reader in range(num_readers):
        stream = ClipStream(shards, seed=0, training=False, shuffle_buffer=1, reader=reader, num_readers=num_readers)
        clips = [clip.key for clip in stream.read()]
        counts.update(clips)
        # With fewer shards than readers nobody idles while another does all the work.
        assert num_readers <= len(SIZES) or len(clips) in (len(KEYS) // num_readers, -(-len(KEYS) // num_readers))
    assert counts == Counter(KEYS)


def test_evaluation_keeps_the_order_of_the_shards(shards: list[ShardFile]) -> None:
    stream = ClipStream(shards, seed=0, training=False, shuffle_buffer=9)
    assert [clip.key for clip in stream.read()] == KEYS


def test_too_few_shards_to_train_are_refused(shards: list[ShardFile]) -> None:
    with pytest.raises(UserError, match=r"6 shards cannot feed 8 readers"):
        training(shards, 0, 8)


def test_empty_shards_feed_nobody(shards: list[ShardFile]) -> None:
    with pytest.raises(UserError, match=r"6 shards cannot feed 7 readers"):
        training([*shards, ShardFile(Path("empty.tar"), 0)], 0, 7)


@pytest.mark.parametrize("kept_bytes", [0, 700, 2500])
def test_a_broken_shard_yields_damaged_clips_and_true_positions(
    shards: list[ShardFile], tmp_path: Path, kept_bytes: int
) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(shards[0].path.read_bytes()[:kept_bytes])
    stream = ClipStream([ShardFile(broken, 5), shards[1]], seed=0, training=False, shuffle_buffer=1)
    clips = list(stream.read())
    assert [clip.consumed for clip in clips] == list(range(1, 9))
    assert [clip.key for clip in clips[5:]] == ["s1.c0", "s1.c1", "s1.c2"]
    damaged = [clip for clip in clips if clip.damage]
    assert damaged
    assert all(clip.shard == "broken.tar" for clip in damaged)


def test_a_shard_with_more_clips_than_its_index_says_is_refused(shards: list[ShardFile]) -> None:
    with pytest.raises(UserError, match=r"holds more than the 4 clips its index lists"):
        list(ClipStream([ShardFile(shards[0].path, 4)], seed=0, training=False, shuffle_buffer=1).read())


def test_a_name_is_never_a_command(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    clips = list(
        ClipStream([ShardFile(Path(f"pipe:touch {flag}"), 1)], seed=0, training=False, shuffle_buffer=1).read()
    )
    assert clips[0].damage
    assert not flag.exists()


def test_pickled_members_stay_bytes(tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'exit 1'\ntR."
    path = write_tar(tmp_path / "p.tar", {"a": {"pickle": bomb}, "b": {"pyd": bomb, "json": b"{}"}})
    clips = list(ClipStream([ShardFile(path, 2)], seed=0, training=False, shuffle_buffer=1).read())
    assert [clip.media for clip in clips] == [bomb, bomb]
    assert [clip.record for clip in clips] == [None, b"{}"]
