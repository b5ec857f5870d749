"""Clips to shards: what lies in them, what is left out and why, and that nothing half-written or foreign is damaged."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset

from mavil.data.media import encode_clip, probe
from mavil.data.shards.clip_table import read_table
from mavil.data.shards.index import ShardIndex, read_index
from mavil.data.shards.pack import make_shards
from mavil.data.shards.selection import take_range
from mavil.data.shards.verify import verify_shards
from mavil.data.sources.listing import Listing, Reject
from mavil.data.sources.read import read_source
from mavil.data.synthetic import list_synthetic, make_synthetic_shards
from mavil.structs import Clip, UserError

SOUND = 0.3 * torch.sin(torch.arange(8000) / 5)
PICTURE = torch.full((4, 3, 32, 32), 90, dtype=torch.uint8)


def numbered_media(number: int) -> bytes:
    """Clips that differ in nothing but their brightness."""
    return encode_clip(PICTURE + number, 8.0, SOUND)


@pytest.fixture(scope="module")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of usable clips, and one of each kind of unusable one."""
    folder = tmp_path_factory.mktemp("media")
    files = {f"{'cat' if n % 2 else 'dog'}/{n}.mp4": numbered_media(n) for n in range(6)}
    files |= {
        "bad/no_sound.mp4": encode_clip(PICTURE, 8.0, None),
        "bad/no_picture.m4a": encode_clip(None, 8.0, SOUND),
        "bad/silent.mp4": encode_clip(PICTURE, 8.0, torch.zeros(8000)),
        "bad/short.mp4": encode_clip(PICTURE[:1], 50.0, SOUND[:300]),
        "bad/garbage.mp4": b"no media" * 400,
        "bad/empty.mp4": b"",
    }
    for name, media in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(media)
    return folder


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def rejects_of(folder: Path) -> dict[str, str]:
    with (folder / "rejects.csv").open(newline="") as file:
        return {row["key"]: row["cause"] for row in csv.DictReader(file)}


def pack(source: Path, out: Path, skip: int = 0, limit: int | None = None, **options: object) -> ShardIndex:
    listing = take_range(read_source(source), source, skip, limit)
    return make_shards(listing, out, show_progress=False, **options)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_each_clip_is_one_media_file_and_its_record(media_folder: Path, tmp_path: Path) -> None:
    index = pack(media_folder, tmp_path / "out", clips_per_shard=4)
    assert [(shard.name, shard.num_clips) for shard in index.shards] == [("000000.tar", 4), ("000001.tar", 3)]
    assert (index.num_clips, index.num_with_audio, index.num_with_video) == (7, 7, 7)
    assert index.label_counts == {"bad": 1, "cat": 3, "dog": 3}  # the silent one is usable unless the option says no
    assert read_index(tmp_path / "out") == index
    assert verify_shards(tmp_path / "out", show_progress=False) == []
    members = {name: data for path in index.shard_paths for name, data in members_of(path).items()}
    assert len(members) == 14
    assert members["dog__0.mp4"] == (media_folder / "dog/0.mp4").read_bytes()
    record = json.loads(members["dog__0.json"])
    info = probe(members["dog__0.mp4"])
    assert record == {
        "key": "dog__0",
        "labels": ["dog"],
        "metadata": {},
        "duration_seconds": info.duration_seconds,
        "has_audio": True,
        "has_video": True,
        "width": 32,
        "height": 32,
        "frames_per_second": 8.0,
    }


def test_unusable_clips_are_listed_with_their_cause(media_folder: Path, tmp_path: Path) -> None:
    index = pack(media_folder, tmp_path / "out", reject_silent=True)
    expected = {
        "bad__no_sound": "no_audio",
        "bad__no_picture": "no_video",
        "bad__silent": "silent",
        "bad__short": "too_short",
        "bad__garbage": "undecodable",
        "bad__empty": "empty",
    }
    assert rejects_of(tmp_path / "out") == expected
    assert index.rejected == dict.fromkeys(expected.values(), 1)


def test_what_is_required_decides_what_is_left_out(media_folder: Path, tmp_path: Path) -> None:
    index = pack(media_folder, tmp_path / "out", require=("audio",))
    assert index.num_with_audio == index.num_clips == index.num_with_video + 1
    assert "bad__no_picture" not in rejects_of(tmp_path / "out")
    assert rejects_of(tmp_path / "out")["bad__no_sound"] == "no_audio"
    names = [name for path in index.shard_paths for name in members_of(path)]
    assert "bad__no_picture.m4a" in names


def test_a_missing_file_of_a_list_is_one_reject(media_folder: Path, tmp_path: Path) -> None:
    path = media_folder / "list.csv"
    path.write_text("path,start,end,speaker\ndog/0.mp4,,,anna\ndog/0.mp4,0.1,0.4,ben\ngone.mp4,,,carl\n")
    index = pack(path, tmp_path / "out")
    assert rejects_of(tmp_path / "out") == {"gone": "missing"}
    records = [json.loads(data) for name, data in members_of(index.shard_paths[0]).items() if name.endswith(".json")]
    by_key = {record["key"]: record for record in records}
    assert by_key["dog__0"]["metadata"] == {"speaker": "anna"}
    assert by_key["dog__0-100-400"]["duration_seconds"] == pytest.approx(0.3, abs=0.13)


def test_equal_clips_give_equal_shards(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_shards(list_synthetic(6, seed=0), tmp_path / name, **SAME_MEDIA, seed=seed)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    assert files_in(tmp_path / "one") != files_in(tmp_path / "other")
    with tarfile.open(tmp_path / "one/000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


CLIP = encode_clip(PICTURE, 8.0, SOUND)
SAME_MEDIA = {"read": lambda clip: CLIP, "depth": "none", "show_progress": False}


def keys_of(index: ShardIndex) -> list[str]:
    return [name[:-5] for path in index.shard_paths for name in members_of(path) if name.endswith(".json")]


def test_order_is_shuffled_unless_it_is_to_be_kept(tmp_path: Path) -> None:
    clips = [Clip(key=f"{n:02d}", path="") for n in range(12)]
    kept = make_shards(clips, tmp_path / "a", **SAME_MEDIA, clips_per_shard=5, keep_order=True)
    mixed = make_shards(clips, tmp_path / "b", **SAME_MEDIA, clips_per_shard=5)
    assert keys_of(kept) == [clip.key for clip in clips]
    assert keys_of(mixed) != keys_of(kept)
    assert sorted(keys_of(mixed)) == keys_of(kept)


def test_ranges_of_a_source_share_no_clip(media_folder: Path, tmp_path: Path) -> None:
    first = pack(media_folder, tmp_path / "a", limit=9)
    rest = pack(media_folder, tmp_path / "b", skip=9)
    assert set(keys_of(first)).isdisjoint(keys_of(rest))
    assert len(keys_of(first) + keys_of(rest)) == 7
    with pytest.raises(UserError, match="has 12 clips: none is left with skip 12"):
        pack(media_folder, tmp_path / "c", skip=12)


def test_finished_shards_are_not_touched_without_leave(media_folder: Path, tmp_path: Path) -> None:
    make_synthetic_shards(2, tmp_path / "out", show_progress=False)
    before = files_in(tmp_path / "out")
    with pytest.raises(UserError, match=r"already holds shards.*--overwrite"):
        pack(media_folder, tmp_path / "out")
    assert files_in(tmp_path / "out") == before
    index = pack(media_folder, tmp_path / "out", overwrite=True, clips_per_shard=7)
    assert index.num_clips == 7
    assert verify_shards(tmp_path / "out", show_progress=False) == []


def test_overwriting_leaves_no_shard_of_the_old_set(media_folder: Path, tmp_path: Path) -> None:
    pack(media_folder, tmp_path / "out", clips_per_shard=2)
    (tmp_path / "out/notes.txt").write_text("mine")
    pack(media_folder, tmp_path / "out", overwrite=True)
    expected = ["000000.tar", "clips.npy", "index.json", "labels.npz", "notes.txt", "rejects.csv"]
    assert sorted(files_in(tmp_path / "out")) == expected


def test_an_interrupted_write_leaves_what_was_there(media_folder: Path, tmp_path: Path) -> None:
    def stop_at_third(clip: Clip) -> bytes:
        if clip.key == "02":
            raise KeyboardInterrupt
        return CLIP

    clips = [Clip(key=f"{n:02d}", path="") for n in range(4)]
    options = {**SAME_MEDIA, "read": stop_at_third, "clips_per_shard": 1, "keep_order": True}
    with pytest.raises(KeyboardInterrupt):
        make_shards(clips, tmp_path / "new", **options)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".incomplete"]
    with pytest.raises(UserError, match="no finished set of shards"):
        read_index(tmp_path / "new")
    pack(media_folder, tmp_path / "old")
    before = files_in(tmp_path / "old")
    with pytest.raises(KeyboardInterrupt):
        make_shards(clips, tmp_path / "old", overwrite=True, **options)
    shutil.rmtree(tmp_path / "old/.incomplete")
    assert files_in(tmp_path / "old") == before


def test_a_stop_while_shards_are_moved_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_synthetic_shards(2, tmp_path / "out", show_progress=False)
    move, moved = os.replace, []

    def stop_at_second(source: Path, target: Path) -> None:
        if target.parent == tmp_path / "out":
            if moved:
                raise KeyboardInterrupt
            moved.append(target)
        move(source, target)

    monkeypatch.setattr(os, "replace", stop_at_second)
    clips = [Clip(key=f"{n}", path="") for n in range(2)]
    with pytest.raises(KeyboardInterrupt):
        make_shards(clips, tmp_path / "out", **SAME_MEDIA, clips_per_shard=1, overwrite=True)
    assert len(moved) == 1
    assert not (tmp_path / "out/index.json").exists()
    monkeypatch.setattr(os, "replace", move)
    index = make_shards(clips, tmp_path / "out", **SAME_MEDIA, clips_per_shard=1)  # the rest is moved, by the same call
    assert index.num_clips == 2
    assert verify_shards(tmp_path / "out", show_progress=False) == []


def test_nothing_usable_is_an_error_that_counts_causes(media_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "media"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.mp4").write_bytes(b"no media" * 100)
    with pytest.raises(UserError, match=r"none of the 3 clips can be used \(undecodable 3\).*rejects\.csv lists all"):
        pack(source, tmp_path / "out")
    assert len(rejects_of(tmp_path / "out")) == 3
    assert not (tmp_path / "out/index.json").exists()
    pack(media_folder, tmp_path / "full")
    before = files_in(tmp_path / "full")
    with pytest.raises(UserError, match="none of the 3"):
        pack(source, tmp_path / "full", overwrite=True)
    assert files_in(tmp_path / "full") == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format_version": 1}',
        '{"format_version": 1, "shards": [{"name": "a"}]}',
        '{"format_version": 9}',
    ],
)
def test_a_damaged_index_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json: (damaged|written by another)") as caught:
        read_index(tmp_path)
    assert "\n" not in str(caught.value)


def test_targets_and_keys_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        make_synthetic_shards(1, tmp_path / "file", show_progress=False)
    with pytest.raises(UserError, match="no such folder of shards"):
        read_index(tmp_path / "nothing")
    with pytest.raises(UserError, match="0 clips per shard"):
        make_synthetic_shards(1, tmp_path / "out", clips_per_shard=0, show_progress=False)
    with pytest.raises(ValueError, match="same key"):
        make_shards([Clip(key="a", path=""), Clip(key="a", path="")], tmp_path / "out", **SAME_MEDIA)
    clips = (Clip(key="a", path="a.mp4", labels=("owl",)),)
    with pytest.raises(UserError, match="'owl' is none of the 2 classes"):
        make_shards(Listing(clips, classes=("cat", "dog")), tmp_path / "out", **SAME_MEDIA)


def test_shards_differ_in_size_by_one_clip_at_most(tmp_path: Path) -> None:
    clips = [Clip(key=f"{n:02d}", path="") for n in range(11)]
    index = make_shards(clips, tmp_path / "out", **SAME_MEDIA, clips_per_shard=5)
    assert [shard.num_clips for shard in index.shards] == [4, 4, 3]


def test_classes_of_the_source_keep_their_order_and_rejects_of_the_source_are_counted(tmp_path: Path) -> None:
    clips = tuple(Clip(key=f"{n}", path="", labels=("cat", "ant")[n:], weight=n + 0.5) for n in range(2))
    listing = Listing(clips, (Reject("gone", "list.csv", "missing", "line 3"),), classes=("dog", "cat", "ant"))
    index = make_shards(listing, tmp_path / "out", **SAME_MEDIA, keep_order=True)
    assert index.classes == ("dog", "cat", "ant")
    assert index.label_counts == {"ant": 2, "cat": 1}
    assert index.rejected == {"missing": 1}
    assert rejects_of(tmp_path / "out") == {"gone": "missing"}
    table = read_table(tmp_path / "out", 2)
    assert [table.labels_of(clip).tolist() for clip in range(2)] == [[1, 2], [2]]
    assert table.rows["weight"].tolist() == [0.5, 1.5]


def test_a_clip_that_fails_only_when_written_is_a_reject_and_moves_no_other(tmp_path: Path) -> None:
    clips = [Clip(key=f"{n}", path="") for n in range(6)]
    options = {**SAME_MEDIA, "clips_per_shard": 2, "keep_order": True}
    whole = make_shards(clips, tmp_path / "whole", **options)
    index = make_shards(clips, tmp_path / "out", **{**options, "read": lambda clip: CLIP if clip.key != "2" else b"x"})
    assert [shard.num_clips for shard in index.shards] == [2, 1, 2]
    assert rejects_of(tmp_path / "out") == {"2": "undecodable"}
    assert [index.shards[n] == whole.shards[n] for n in range(3)] == [True, False, True]
    assert verify_shards(tmp_path / "out", show_progress=False) == []


def test_webdataset_reads_the_shards(media_folder: Path, tmp_path: Path) -> None:
    index = pack(media_folder, tmp_path / "out", clips_per_shard=4)
    urls = [str(path) for path in index.shard_paths]
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert sorted(samples) == sorted(keys_of(index))
    assert samples["dog__0"]["mp4"] == (media_folder / "dog/0.mp4").read_bytes()
    assert json.loads(samples["dog__0"]["json"])["labels"] == ["dog"]
