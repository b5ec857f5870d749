from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from mavil.data.stream.clips import ClipStream
from mavil.data.stream.excerpt import spread_evenly, write_excerpt
from mavil.data.stream.shard_set import ShardSet, open_shards
from mavil.structs import UserError
from tests.data.shard_files import sound_clip, write_folder


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    clips = {
        f"clip{i}": sound_clip(f"clip{i}", 0.01 + 0.005 * i, labels=["even", "odd"][i % 2 :][:1]) for i in range(7)
    }
    names = list(clips)
    (tmp_path / "all").mkdir()
    return open_shards(
        write_folder(tmp_path / "all", [{n: clips[n] for n in names[:3]}, {n: clips[n] for n in names[3:]}])
    )


def read(shards: ShardSet) -> dict[str, tuple[bytes | None, bytes | None]]:
    stream = ClipStream(shards, seed=0, training=False, shuffle_buffer=1)
    return {clip.key: (clip.media, clip.record) for clip in stream.read()}


def test_an_excerpt_holds_the_same_clips(shards: ShardSet, tmp_path: Path) -> None:
    chosen = spread_evenly(7, 3)
    assert chosen == [0, 3, 6]
    assert spread_evenly(2, 64) == [0, 1]
    (tmp_path / "few").mkdir()
    assert write_excerpt(shards, chosen, tmp_path / "few") == 3
    few = open_shards(tmp_path / "few")
    everything = read(shards)
    assert read(few) == {f"clip{i}": everything[f"clip{i}"] for i in chosen}
    with tarfile.open(tmp_path / "few/000000.tar") as tar:
        assert tar.getnames() == [f"clip{i}.{ending}" for i in chosen for ending in ("wav", "json")]
    assert few.index.classes == shards.index.classes
    assert few.index.label_counts == {"even": 2, "odd": 1}
    assert [few.table().labels_of(i).tolist() for i in range(3)] == [
        shards.table().labels_of(i).tolist() for i in chosen
    ]


def test_what_cannot_be_read_is_left_out(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "all/000001.tar").unlink()
    (tmp_path / "few").mkdir()
    assert write_excerpt(shards, [0, 3, 6], tmp_path / "few") == 1
    with pytest.raises(UserError, match="none of 2 clips can be read"):
        write_excerpt(shards, [3, 6], tmp_path / "few")
