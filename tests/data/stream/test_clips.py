"""Raw clips of real shards: each once, continued exactly, read where they lie, damage named and nothing lost by it."""

from __future__ import annotations

import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mavil.data.shards.clip_table import CLIPS
from mavil.data.stream.clips import ClipStream, RawClip
from mavil.data.stream.position import History, Team, hand_over
from mavil.data.stream.shard_set import ShardSet, open_shards
from mavil.data.stream.storage import LocalFolder
from mavil.structs import UserError
from tests.data.shard_files import Members, write_folder, write_tar

SIZES = (5, 3, 4, 1, 6, 2)
KEYS = [f"s{shard}.c{clip}" for shard, size in enumerate(SIZES) for clip in range(size)]


class WatchedStorage(LocalFolder):
    """Remembers what was read; ``is_local`` is the test's choice."""

    def __init__(self, folder: Path, is_local: bool) -> None:
        super().__init__(folder)
        self.is_local = is_local
        self.reads: list[tuple[str, int, int]] = []

    def read(self, name: str, offset: int, size: int) -> bytes:
        self.reads.append((name, offset, size))
        return super().read(name, offset, size)


def clip_members(key: str) -> Members:
    return {"mp4": f"media of {key} ".encode() * (1 + sum(key.encode()) % 90), "json": f'{{"key": "{key}"}}'.encode()}


def write_sizes(folder: Path, sizes: tuple[int, ...]) -> ShardSet:
    shards = [
        {key: clip_members(key) for key in (f"s{shard}.c{clip}" for clip in range(size))}
        for shard, size in enumerate(sizes)
    ]
    return open_shards(write_folder(folder, shards))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_sizes(tmp_path_factory.mktemp("shards"), SIZES)


def watched(shards: ShardSet, is_local: bool) -> tuple[ShardSet, WatchedStorage]:
    storage = WatchedStorage(shards.index.folder, is_local)
    return ShardSet(shards.index, storage), storage


def training(
    shards: ShardSet, reader: int = 0, num_readers: int = 1, seed: int = 7, window: int = 4, history: History = ()
) -> ClipStream:
    return ClipStream(
        shards,
        seed=seed,
        training=True,
        shuffle_buffer=window,
        reader=reader,
        num_readers=num_readers,
        history=history,
    )


def evaluation(shards: ShardSet, reader: int = 0, num_readers: int = 1) -> list[RawClip]:
    stream = ClipStream(shards, seed=0, training=False, shuffle_buffer=9, reader=reader, num_readers=num_readers)
    return list(stream.read())


def one_epoch(stream: ClipStream, epoch: int) -> list[RawClip]:
    clips: list[RawClip] = []
    for clip in stream.read(epoch):
        if clip.epoch > epoch:
            return clips
        clips.append(clip)
    raise AssertionError("a training stream never ends")


# --- each clip once ---


@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("num_readers", [1, 2, 4, 7, 21])
def test_training_yields_every_clip_once_per_epoch(shards: ShardSet, num_readers: int, is_local: bool) -> None:
    shards, _ = watched(shards, is_local)
    for epoch in (0, 3):
        readers = [one_epoch(training(shards, reader, num_readers), epoch) for reader in range(num_readers)]
        clips = [clip for reader in readers for clip in reader]
        assert sorted(clip.key for clip in clips) == sorted(KEYS)
        for clip in clips:
            assert {"mp4": clip.media, "json": clip.record} == clip_members(clip.key)
            assert (clip.damage, clip.copy, clip.shard) == (None, 0, f"00000{clip.key[1]}.tar")
        for reader_clips in readers:
            assert len(KEYS) // num_readers <= len(reader_clips) <= -(-len(KEYS) // num_readers)
            assert [clip.consumed for clip in reader_clips] == list(range(1, len(reader_clips) + 1))


def test_shards_of_one_clip_feed_as_many_readers(tmp_path: Path) -> None:
    shards = write_sizes(tmp_path, (1, 1, 1))
    keys = {one_epoch(training(shards, reader, 3), 5)[0].key for reader in range(3)}
    assert keys == {"s0.c0", "s1.c0", "s2.c0"}


def test_order_depends_on_seed_and_epoch_and_not_on_the_storage(shards: ShardSet) -> None:
    def keys(seed: int, epoch: int, is_local: bool = True) -> list[str]:
        return [clip.key for clip in one_epoch(training(watched(shards, is_local)[0], seed=seed), epoch)]

    assert keys(7, 0) == keys(7, 0) == keys(7, 0, is_local=False)
    assert len({tuple(keys(seed, epoch)) for seed in (7, 8) for epoch in range(10)}) == 20
    assert keys(7, 0) != KEYS


@pytest.mark.parametrize("num_readers", [1, 4, 6, 7, 30])
def test_evaluation_yields_every_clip_once_over_all_readers(shards: ShardSet, num_readers: int) -> None:
    readers = [evaluation(shards, reader, num_readers) for reader in range(num_readers)]
    assert [clip.key for clips in readers for clip in clips] == KEYS
    assert max(map(len, readers)) - min(map(len, readers)) <= 1


def test_fewer_clips_than_readers_are_refused(shards: ShardSet) -> None:
    assert training(shards, 0, 21).items_per_epoch == 21
    with pytest.raises(UserError, match=r"21 clips an epoch cannot feed 22 readers"):
        training(shards, 0, 22)


# --- continuing ---


@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("reader", [0, 1])
def test_every_position_continues_bit_for_bit(shards: ShardSet, reader: int, is_local: bool) -> None:
    shards, _ = watched(shards, is_local)
    whole = list(islice(training(shards, reader, 2).read(), 25))
    assert whole[-1].epoch == 2
    for done, last in enumerate(whole, start=1):
        rest = training(shards, reader, 2).read(last.epoch, last.consumed)
        assert list(islice(rest, 25 - done)) == whole[done:]


@pytest.mark.parametrize("is_local", [True, False])
def test_nothing_is_read_that_was_consumed(shards: ShardSet, is_local: bool) -> None:
    shards, storage = watched(shards, is_local)
    stream = training(shards, 1, 2)
    clips = one_epoch(stream, 1)
    for consumed in range(len(clips) + 1):
        storage.reads.clear()
        list(islice(stream.read(1, consumed), len(clips) - consumed))
        assert sorted(storage.reads) == sorted(block_of(shards, clip.key) for clip in clips[consumed:])


def block_of(shards: ShardSet, key: str) -> tuple[str, int, int]:
    """Shard, offset and size of the tar members of a clip, found by going through the tar."""
    name = f"00000{key[1]}.tar"
    with tarfile.open(shards.index.folder / name) as tar:
        media, record = tar.getmember(f"{key}.mp4"), tar.getmember(f"{key}.json")
    return name, media.offset, record.offset_data + record.size - media.offset


def test_other_readers_take_over_and_see_what_is_left(shards: ShardSet) -> None:
    seen: Counter[tuple[int, str]] = Counter()
    history: History = ()
    epoch = 0
    for window, steps in ((4, [13, 1, 2, 5]), (9, [12, 3]), (2, [4, 30, 9])):
        positions = []
        for reader, count in enumerate(steps):
            stream = training(shards, reader, len(steps), window=window, history=history)
            clips = list(islice(stream.read(epoch), count))
            seen.update((clip.epoch, clip.key) for clip in clips)
            positions.append((clips[-1].epoch, clips[-1].consumed))
        history, epoch = hand_over(history, Team(window, tuple(positions)))
    assert max(epoch for epoch, _ in seen) >= 3
    for left in range(epoch, 6):
        seen.update((left, clip.key) for clip in one_epoch(training(shards, history=history), left))
    assert seen == Counter((epoch, key) for epoch in range(6) for key in KEYS)


# --- how it is read ---


def test_a_remote_place_is_read_forward_and_at_most_a_window_is_held(shards: ShardSet) -> None:
    shards, storage = watched(shards, is_local=False)
    for num_yielded, _ in enumerate(islice(training(shards, window=6).read(), len(KEYS))):
        assert len(storage.reads) - num_yielded <= 6
    steps = [(a[0] != b[0], a[1] > b[1]) for a, b in zip(storage.reads, storage.reads[1:], strict=False)]
    num_changes = sum(changes_shard for changes_shard, _ in steps)
    num_backward = sum(goes_back for changes_shard, goes_back in steps if not changes_shard)
    assert num_changes == len(SIZES) - 1
    assert num_backward <= len(SIZES)  # a shard is begun at some clip and read round


def test_one_read_fetches_a_clip_and_no_more(shards: ShardSet) -> None:
    shards, storage = watched(shards, is_local=True)
    evaluation(shards)
    assert len(storage.reads) == len(KEYS)
    in_tars = sum((shards.index.folder / shard.name).stat().st_size for shard in shards.index.shards)
    assert sum(size for _, _, size in storage.reads) <= in_tars
    assert storage.bytes_read == sum(size for _, _, size in storage.reads)


# --- damage ---


@pytest.fixture
def own_shards(tmp_path: Path) -> ShardSet:
    return write_sizes(tmp_path, (3, 2))


def assert_only_damaged(shards: ShardSet, damaged: list[int], why: str) -> None:
    clips = evaluation(shards)
    assert [clip.consumed for clip in clips] == [1, 2, 3, 4, 5]
    assert [number for number, clip in enumerate(clips) if clip.damage] == damaged
    for clip in clips:
        assert clip.damage is None or why in clip.damage
        assert clip.damage is None or (clip.media, clip.record) == (None, None)
        assert clip.damage is None or str(shards.index.folder) not in clip.damage
        assert "\n" not in (clip.damage or "")
    for number in damaged:
        assert clips[number].key == f"clip {number}"
        assert clips[number].shard == "000000.tar"


@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize(("kept_clips", "damaged"), [(0, [0, 1, 2]), (1.5, [1, 2]), (2.999, [2])])
def test_a_truncated_shard(own_shards: ShardSet, kept_clips: float, damaged: list[int], is_local: bool) -> None:
    own_shards, _ = watched(own_shards, is_local)
    path = own_shards.index.shard_paths[0]
    row = own_shards.rows()[int(kept_clips)]
    end = int(row["offset"]) + int(kept_clips % 1 * (row["record_at"] + row["record_bytes"]))
    path.write_bytes(path.read_bytes()[:end])
    assert_only_damaged(own_shards, damaged, "its shard ends")


@pytest.mark.parametrize("at", [0, 3, 100, 124, 150, 160, 257, 511])
@pytest.mark.parametrize("member", ["media", "record"])
def test_a_flipped_byte_of_a_header(own_shards: ShardSet, member: str, at: int) -> None:
    row = own_shards.rows()[1]
    path = own_shards.index.shard_paths[0]
    data = bytearray(path.read_bytes())
    data[int(row["offset"] + row[f"{member}_at"]) - 512 + at] ^= 0b100
    path.write_bytes(data)
    assert_only_damaged(own_shards, [1], "the clip is not where the table of clips says")


def test_a_shard_that_was_deleted(own_shards: ShardSet) -> None:
    own_shards.index.shard_paths[0].unlink()
    assert_only_damaged(own_shards, [0, 1, 2], "No such file")


def test_a_shard_swapped_for_another_of_the_same_size(own_shards: ShardSet, tmp_path: Path) -> None:
    path = own_shards.index.shard_paths[0]
    size = path.stat().st_size
    other = write_tar(tmp_path / "other", {f"x{n}": clip_members(f"s0.c{n % 3}") for n in (2, 0, 1)})
    path.write_bytes(other.read_bytes())
    assert path.stat().st_size == size
    assert_only_damaged(own_shards, [0, 1, 2], "damaged or changed")


def test_members_of_two_clips_are_no_clip(own_shards: ShardSet) -> None:
    members = clip_members("s0.c1")
    clips = {f"s0.c{n}": clip_members(f"s0.c{n}") for n in (0, 2)}
    mixed = {"s0.c0": clips["s0.c0"], "s0.c1": {"mp4": members["mp4"]}, "s9.c9": {"json": members["json"]}}
    write_tar(own_shards.index.shard_paths[0], {**mixed, "s0.c2": clips["s0.c2"]})
    assert_only_damaged(own_shards, [1], "damaged or changed")


def test_headers_made_to_exhaust_the_reader_are_damage(own_shards: ShardSet) -> None:
    """A chain of long-name headers without a name, for each of which tarfile goes one call deeper."""
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    chain = header.tobuf(tarfile.GNU_FORMAT) * 3000
    path = own_shards.index.shard_paths[0]
    rows = np.array(own_shards.rows())
    rows[1] = (path.stat().st_size, 512, len(chain) - 512, 0, 0, 1.0)
    path.write_bytes(path.read_bytes() + chain)
    np.save(own_shards.index.folder / CLIPS, rows)
    assert_only_damaged(own_shards, [1], "damaged or changed")


def test_an_index_and_a_table_of_different_clips_are_refused(own_shards: ShardSet) -> None:
    text = (own_shards.index.folder / "index.json").read_text()
    (own_shards.index.folder / "index.json").write_text(text.replace('"num_clips": 3', '"num_clips": 2'))
    with pytest.raises(UserError, match=r"hold 4 clips and its table has 5"):
        evaluation(open_shards(own_shards.index.folder))


# --- unusual but whole ---


def test_missing_members_are_none_and_pickles_stay_bytes(tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'exit 1'\ntR."
    clips = {
        "a": {"pickle": bomb},
        "b": {"pyd": bomb, "json": b"{}"},
        "c": {"json": b"{}"},
        "d": {"mp4": b"", "json": b"1"},
    }
    read = evaluation(open_shards(write_folder(tmp_path, [clips])))
    assert [(clip.key, clip.media, clip.record, clip.damage) for clip in read] == [
        ("a", bomb, None, None),
        ("b", bomb, b"{}", None),
        ("c", None, b"{}", None),
        ("d", None, b"1", None),
    ]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_keys(tmp_path: Path, tar_format: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that do not fit a plain header, which then has others in front."""
    monkeypatch.setattr(tarfile.TarFile, "format", tar_format)
    keys = ["folder/" + "k" * 150, "日本 ä.b", "last"]
    read = evaluation(open_shards(write_folder(tmp_path, [{key: clip_members(key) for key in keys}])))
    assert [(clip.key, clip.media) for clip in read] == [(key, clip_members(key)["mp4"]) for key in keys]


def test_empty_shards_change_nothing(tmp_path: Path) -> None:
    shards = write_sizes(tmp_path, (0, 2, 0, 0, 1, 0))
    assert [clip.key for clip in evaluation(shards)] == ["s1.c0", "s1.c1", "s4.c0"]
    assert {clip.key for clip in one_epoch(training(shards), 0)} == {"s1.c0", "s1.c1", "s4.c0"}


def test_evaluation_has_no_history(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match="one whole pass"):
        ClipStream(shards, seed=0, training=False, shuffle_buffer=1, history=(Team(1, ((0, 1),)),))
