"""Tars of video2dataset: where each clip lies, what its texts say, and what a damaged tar still gives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mavil.data.sources.read import SourceOptions, read_source
from mavil.data.sources.web_tars import MAX_TEXT_BYTES
from mavil.structs import UserError
from tests.data.sources.fake_files import causes, touch

RECORD = {
    "url": "https://www.youtube.com/watch?v=od_PmtmMDV0",
    "key": "0000001",
    "status": "success",
    "width": 640,
    "clips": [[0.0, 9.5]],
    "error_message": None,
    "yt_meta_dict": {"info": {"title": "x"}},
}


def write_tar(path: Path, *members: tuple[str, bytes | dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_clip_is_a_range_of_its_tar(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "00000.tar",
        ("0000001_00000.json", RECORD),
        ("0000001_00000.txt", b"Driving to the banana store\n"),
        ("0000001_00000.m4a", b"sound"),
        ("0000001_00000.mp4", b"picture and sound"),
        ("0000002.webm", b"second"),
    )
    touch(tmp_path, "00000.parquet", "00000_stats.json")
    first, second = read_source(tmp_path).clips
    assert (first.key, first.path, first.source_id) == ("0000001_00000", str(tar), "od_PmtmMDV0")
    assert first.byte_range is not None
    offset, size = first.byte_range
    assert tar.read_bytes()[offset : offset + size] == b"picture and sound"
    assert first.metadata == {
        "url": RECORD["url"],
        "key": "0000001",
        "status": "success",
        "width": "640",
        "caption": "Driving to the banana store",
    }
    assert (second.key, second.metadata, second.labels, second.source_id) == ("0000002", {}, (), "0000002")
    assert read_source(tar).clips == (first, second)


@pytest.mark.parametrize(
    ("record", "labels", "source_id"),
    [
        ({"labels": ["dog", "cat", "dog"], "video_id": "0_8-g2rof7E_000049"}, ("dog", "cat"), "0_8-g2rof7E"),
        ({"label": "dog", "youtube_id": "--4gqARaEJE"}, ("dog",), "--4gqARaEJE"),
        ({"label": 3, "labels": []}, ("3",), "a"),
    ],
)
def test_labels_and_ids_from_the_record(
    tmp_path: Path, record: dict[str, Any], labels: tuple[str, ...], source_id: str
) -> None:
    (clip,) = read_source(write_tar(tmp_path / "x.tar", ("a.mp4", b"v"), ("a.json", record))).clips
    assert (clip.labels, clip.source_id) == (labels, source_id)
    assert not set(clip.metadata) & {"label", "labels"}


def test_equal_keys_in_two_tars_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/0.tar", "b/0.tar", "c.tar"):
        write_tar(tmp_path / name, ("k.mp4", b"v"), ("sub/k.mp4", b"v"))
    write_tar(tmp_path / "d.tar", ("own.mp4", b"v"))
    keys = [clip.key for clip in read_source(tmp_path, SourceOptions("video2dataset")).clips]
    assert len(set(keys)) == 7
    assert "own" in keys
    assert keys == [clip.key for clip in read_source(tmp_path, SourceOptions("video2dataset")).clips]


def test_a_truncated_tar_gives_the_clips_before_the_damage(tmp_path: Path) -> None:
    members = [(f"{number}.mp4", bytes([number]) * 700) for number in range(1, 6)]
    whole = write_tar(tmp_path / "00000.tar", *members)
    data = whole.read_bytes()
    assert len(read_source(tmp_path).clips) == 5
    # Inside the third clip's data, inside its header, after its data, and without the end mark.
    for length, num_clips in ((2 * 1536 + 600, 2), (2 * 1536 + 100, 2), (3 * 1536, 3), (5 * 1536, 5)):
        whole.write_bytes(data[:length])
        listing = read_source(tmp_path)
        assert [clip.key for clip in listing.clips] == [str(number) for number in range(1, num_clips + 1)]
        assert causes(listing) == {"damaged_tar": 1}
        assert f"{num_clips} clips before the damage" in listing.rejects[0].detail


def test_a_record_whose_media_is_cut_off_is_no_clip(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", ("a.mp4", b"v"), ("b.json", {}), ("b.mp4", b"v" * 700))
    tar.write_bytes(tar.read_bytes()[: 5 * 512 + 100])
    listing = read_source(tmp_path)
    assert [clip.key for clip in listing.clips] == ["a"]
    assert {reject.key: reject.cause for reject in listing.rejects} == {"b": "missing", "0": "damaged_tar"}
    assert listing.rejects[1].detail.endswith("1 clips before the damage")


def test_a_flipped_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", *((f"{number}.mp4", b"v" * 700) for number in range(4)))
    data = bytearray(tar.read_bytes())
    data[2 * 1536 + 10] ^= 0xFF
    tar.write_bytes(data)
    listing = read_source(tmp_path)
    assert len(listing.clips) == 2
    assert "damaged header at byte 3072" in listing.rejects[0].detail


def test_clips_without_media_or_with_damaged_texts_are_told(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar",
        ("good.mp4", b"v"),
        ("nothing.json", {}),
        ("nothing.txt", b"a caption"),
        ("bad.mp4", b"v"),
        ("bad.json", b"{"),
        ("list.mp4", b"v"),
        ("list.json", b"[1]"),
        ("huge.mp4", b"v"),
        ("huge.json", {"text": "x" * MAX_TEXT_BYTES}),
        ("pickle.mp4", b"v"),
        ("pickle.pkl", b"cos\nsystem\n"),
    )
    listing = read_source(tmp_path)
    assert [clip.key for clip in listing.clips] == ["good", "pickle"]
    assert {reject.key: reject.cause for reject in listing.rejects} == {
        "nothing": "missing",
        "bad": "damaged_record",
        "list": "damaged_record",
        "huge": "damaged_record",
    }
    assert "only json, txt" in listing.rejects[0].detail


def test_no_tars_and_tars_without_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tars here"):
        read_source(tmp_path, SourceOptions("video2dataset"))
    (tmp_path / "0.tar").write_bytes(b"\x1f\x8b not a tar" * 100)
    with pytest.raises(UserError, match=r"no clip in 1 tars; e\.g\. .*0\.tar: "):
        read_source(tmp_path)
