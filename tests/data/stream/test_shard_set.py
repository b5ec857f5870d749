"""A set of shards opened where it lies: what is fetched, where it is kept, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mavil.atomic_files import sha256_of
from mavil.data.shards.clip_table import CLIPS, LABELS
from mavil.data.shards.index import INDEX, read_index, write_index
from mavil.data.shards.statistics import STATISTICS
from mavil.data.stream import attempts, remote
from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.clips import ClipStream
from mavil.data.stream.shard_set import open_shards
from mavil.structs import UserError
from tests.data.shard_files import sound_clip, write_folder
from tests.support.http_server import FileServer, serve

SIZES = (3, 5, 2)
OPTIONS = RemoteOptions(tries=2, timeout_seconds=5.0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [
        {key: sound_clip(key, labels=[f"class {key[-1]}"]) for key in (f"s{shard}.c{clip}" for clip in range(size))}
        for shard, size in enumerate(SIZES)
    ]
    (tmp_path / "set").mkdir()
    folder = write_folder(tmp_path / "set", shards)
    index = read_index(folder)
    infos = [
        replace(i, bytes=(folder / i.name).stat().st_size, sha256=sha256_of(folder / i.name)) for i in index.shards
    ]
    write_index(replace(index, shards=tuple(infos)))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def locations(folder: Path, server: FileServer) -> list[tuple[str | Path, RemoteOptions]]:
    return [
        (folder, OPTIONS),
        (server.address, OPTIONS),
        (server.address, replace(OPTIONS, cache=str(folder.parent / "cache"))),
        (f"file://{folder}", OPTIONS),
        (f"pipe:cat {folder}/{{name}}", replace(OPTIONS, allow_shell=True)),
    ]


def test_the_clips_are_the_same_wherever_they_lie(folder: Path) -> None:
    (folder / STATISTICS).write_text("{}")
    local = open_shards(folder)
    expected = list(ClipStream(local, seed=1, training=False, shuffle_buffer=1).read())
    assert len(expected) == sum(SIZES)
    assert all(raw.damage is None for raw in expected)
    with serve(files_of(folder)) as server:
        for location, options in locations(folder, server):
            shards = pickle.loads(pickle.dumps(open_shards(location, options)))
            assert replace(shards.index, folder=folder) == local.index
            assert np.array_equal(shards.rows(), local.rows())
            assert np.array_equal(shards.table().label_ids, local.table().label_ids)
            assert (shards.index.folder / STATISTICS).read_text() == "{}"
            assert list(ClipStream(shards, seed=1, training=False, shuffle_buffer=1).read()) == expected


def test_small_files_are_fetched_once_and_by_the_process_that_opens(folder: Path) -> None:
    with serve(files_of(folder)) as server:
        shards = open_shards(server.address, OPTIONS)
        assert sorted(name for name, _ in server.requests) == sorted([INDEX, CLIPS, LABELS, STATISTICS])
        size = len(pickle.dumps(shards))
        copy = pickle.loads(pickle.dumps(shards))
        copy.table()
        assert copy.storage.fetch(CLIPS) == shards.index.folder / CLIPS
        assert len(server.requests) == 4
    assert size < 3000  # paths, not tables


def test_statistics_may_be_absent_denied_and_gone(folder: Path) -> None:
    (folder / STATISTICS).write_text("{}")
    cached = replace(OPTIONS, cache=str(folder.parent / "cache"))
    with serve(files_of(folder)) as server:
        place = open_shards(server.address, cached).index.folder
        assert (place / STATISTICS).exists()
        del server.files[STATISTICS]
        assert open_shards(server.address, cached).index.folder == place
        assert not (place / STATISTICS).exists()
        server.faults[STATISTICS] = ["403"]
        open_shards(server.address, OPTIONS)
        server.faults[STATISTICS] = ["500"] * 2
        with pytest.raises(UserError, match=r"stats.json: the server answered 500"):
            open_shards(server.address, OPTIONS)


def test_a_command_is_asked_for_statistics_once(folder: Path) -> None:
    log = folder.parent / "log"
    open_shards(f"pipe:echo {{name}} >> {log}; cat {folder}/{{name}}", replace(OPTIONS, allow_shell=True))
    assert log.read_text().split() == [INDEX, CLIPS, LABELS, STATISTICS]


def test_tables_are_verified(folder: Path) -> None:
    with serve(files_of(folder)) as server:
        server.faults[CLIPS] = ["wrong"]
        open_shards(server.address, OPTIONS).rows()
        server.has_ranges = server.has_lengths = False
        server.faults[CLIPS] = ["short"]  # the end of the connection is all that tells the end of the file
        open_shards(server.address, OPTIONS).rows()
        server.has_ranges = server.has_lengths = True
        server.faults[LABELS] = ["wrong"] * 2
        with pytest.raises(UserError, match=r"labels.npz: what came has not the checksum that the index says, 2 tries"):
            open_shards(server.address, OPTIONS)
        del server.files[CLIPS]
        with pytest.raises(UserError, match=r"clips.npy: not found"):
            open_shards(server.address, OPTIONS)
        del server.files[INDEX]
        with pytest.raises(UserError, match=f"^{server.address}: holds no index.json"):
            open_shards(server.address, OPTIONS)
        server.files[INDEX] = b"{"
        with pytest.raises(UserError, match=f"^{server.address}: .*index.json: damaged"):
            open_shards(server.address, OPTIONS)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ({"name": "../000000.tar"}, "no plain file name"),
        ({"name": "/etc/passwd"}, "no plain file name"),
        ({"name": "pipe:touch x"}, "no plain file name"),
        ({"name": "000001.tar"}, "names a shard twice"),
        ({"name": 7}, "damaged at ShardInfo"),
        ({"bytes": "many"}, "damaged at ShardInfo"),
        ({"num_clips": -1}, "damaged at ShardInfo"),
    ],
)
def test_an_index_that_is_not_to_be_trusted_is_refused(folder: Path, shard: dict, message: str) -> None:
    tree = json.loads((folder / INDEX).read_text())
    tree["shards"][0] |= shard
    (folder / INDEX).write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        open_shards(f"file://{folder}", OPTIONS)
    if (
        "name" not in shard or shard["name"] == "000001.tar"
    ):  # others are missing in the folder before they are looked at
        with pytest.raises(UserError, match=message):
            open_shards(folder)


def test_an_index_without_checksums_of_its_tables_is_refused(folder: Path) -> None:
    tree = json.loads((folder / INDEX).read_text())
    for tables, message in (({}, "no checksums of the tables"), ([], "damaged at its tables")):
        (folder / INDEX).write_text(json.dumps(tree | {"tables": tables}))
        with pytest.raises(UserError, match=message):
            open_shards(f"file://{folder}", OPTIONS)


def test_the_temporary_folder_goes_with_its_process_and_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[tuple[Callable[..., None], tuple[str, int]]] = []
    monkeypatch.setattr(remote.atexit, "register", lambda action, *arguments: at_exit.append((action, arguments)))
    place = open_shards(f"file://{folder}", OPTIONS).index.folder
    ((remove, (path, pid)),) = at_exit
    remove(path, pid + 1)  # in a fork
    assert place.exists()
    remove(path, pid)
    assert not place.exists()
