"""Finished shards that were damaged, mixed up or added to: each is told in one line; whole ones have no problem."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mavil.atomic_files import sha256_of
from mavil.data.shards.clip_table import ClipTable, read_table, write_table
from mavil.data.shards.index import ShardIndex, read_index, write_index
from mavil.data.shards.verify import foreign_files, verify_shards
from mavil.data.synthetic import make_synthetic_shards
from mavil.structs import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    make_synthetic_shards(4, folder, clips_per_shard=2, show_progress=False)
    return folder


@pytest.fixture
def index(finished: Path, tmp_path: Path) -> ShardIndex:
    shutil.copytree(finished, tmp_path / "out")
    return read_index(tmp_path / "out")


def problems_of(index: ShardIndex, **options: object) -> str:
    return "\n".join(verify_shards(index.folder, show_progress=False, **options))  # type: ignore[arg-type]


def write_again(index: ShardIndex, **changes: object) -> None:
    """The index with the sizes and checksums that the files have now, and with other changes."""
    shards = tuple(
        replace(shard, bytes=path.stat().st_size, sha256=sha256_of(path))
        for shard, path in zip(index.shards, index.shard_paths, strict=True)
    )
    tables = {name: sha256_of(index.folder / name) for name in index.tables}
    write_index(replace(index, **{"shards": shards, "tables": tables, **changes}))  # type: ignore[arg-type]


def test_a_whole_set_has_no_problem_with_and_without_workers(index: ShardIndex) -> None:
    assert problems_of(index) == ""
    assert problems_of(index, workers=1) == ""
    assert problems_of(index, quick=True) == ""


def test_sizes_and_checksums(index: ShardIndex) -> None:
    path = index.shard_paths[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + bytes([whole[600] ^ 255]) + whole[601:])
    assert "000000.tar: its checksum is not the one in the index" in problems_of(index, quick=True)
    path.write_bytes(whole[:-5000])
    assert f"000000.tar: {len(whole) - 5000} bytes, the index says {len(whole)}" in problems_of(index)
    path.write_bytes(whole[: len(whole) // 2])
    assert "000000.tar: cannot be read to its end" in problems_of(index)
    index.shard_paths[1].unlink()
    with pytest.raises(UserError, match=r"1 shards are missing, e\.g\. 000001\.tar"):
        verify_shards(index.folder)


def test_members_that_cannot_be(index: ShardIndex) -> None:
    with tarfile.open(index.shard_paths[1], "w") as tar:
        for name, data in {"a.mp4": b"no media", "a.json": b"{", "b.pickle": b"x"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write_again(index)
    problems = problems_of(index)
    for expected in (
        "000001.tar: a.mp4: cannot be read",
        "000001.tar: a.json: cannot be read",
        "000001.tar: b.pickle: no such member",
        "000001.tar: clip b has 1 members",
        "000001.tar: clip 0 does not lie where clips.npy says",
    ):
        assert expected in problems
    assert "000000.tar" not in problems


def test_a_clip_whose_tail_cannot_be_decoded_is_found_only_by_decoding(index: ShardIndex) -> None:
    with tarfile.open(index.shard_paths[0]) as tar:
        media = next(member for member in tar if member.name.endswith(".mp4"))
    path = index.shard_paths[0]
    content = bytearray(path.read_bytes())
    first = media.offset_data + media.size // 2
    content[first : first + 2000] = bytes(range(250)) * 8
    path.write_bytes(content)
    write_again(index)
    assert problems_of(index, quick=True) == ""
    assert problems_of(index).startswith(f"000000.tar: {media.name}: cannot be read (undecodable")


def test_records_and_tables_that_disagree(index: ShardIndex) -> None:
    table = read_table(index.folder, 4)
    labels = [table.labels_of(clip).tolist() for clip in range(4)]
    others = [labels[1], labels[0], *labels[2:]]
    write_table(index.folder, ClipTable.of([tuple(row) for row in table.rows.tolist()], others))
    assert "labels.npz: its checksum is not the one in the index" in problems_of(index, quick=True)
    write_again(index)
    problems = problems_of(index, quick=True).splitlines()
    assert len(problems) == 2
    assert all(".json: has labels [" in problem for problem in problems)
    rows = np.array(table.rows)
    rows["offset"][3] += 512
    write_table(index.folder, ClipTable(rows, table.label_starts, table.label_ids))
    write_again(index)
    assert problems_of(index, quick=True) == "000001.tar: clip 1 does not lie where clips.npy says"
    write_again(index, label_counts={**index.label_counts, "tone": 7})
    assert "index.json: its label counts are not those of labels.npz" in problems_of(index, quick=True)
    (index.folder / "clips.npy").unlink()
    assert "clips.npy: missing or damaged" in problems_of(index, quick=True)


def test_a_record_of_another_clip(index: ShardIndex) -> None:
    path = index.shard_paths[0]
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    victim = next(name for name, _ in files[2:] if name.endswith(".json"))
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files:
            if name == victim:
                data = json.dumps({**json.loads(data), "key": "another"}).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write_again(index)
    assert f"000000.tar: {victim}: is of clip another" in problems_of(index, quick=True)


def test_what_does_not_belong_there(index: ShardIndex) -> None:
    shutil.copy(index.shard_paths[0], index.folder / "000007.tar")
    (index.folder / ".incomplete").mkdir()
    (index.folder / "notes.txt").write_text("mine")
    assert problems_of(index, quick=True).splitlines() == [
        "000007.tar: a shard that the index does not know; move it elsewhere",
        ".incomplete: what an interrupted mavil shards make has left; run it again, or remove the folder",
    ]
    assert foreign_files(index, ("rejects.csv",)) == [".incomplete", "000007.tar", "notes.txt"]
