"""Shards kept in a local folder: whole or not at all, within a bound, whoever shares it and whoever is killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mavil.data.shards.clip_table import CLIPS, LABELS
from mavil.data.stream import attempts, partial_files
from mavil.data.stream.storage import Storage, open_storage
from mavil.structs import UserError
from tests.data.stream.remote_sets import OPTIONS, files_of, wait_until, whole, write_set
from tests.support.http_server import serve
from tests.support.ranks import run_in_ranks


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 0.01)


def cached(address: str, cache: Path, shards: float = 100.0, **options: float) -> Storage:
    """A storage whose cache has room for so many of the small sets' shards."""
    return open_storage(address, replace(OPTIONS, cache=str(cache), cache_gib=shards * SMALL / 2**30, **options))


SMALL = 50_000
"""Bytes of each shard in the tests of the cache."""


def small_set(folder: Path, seed: int = 0, num_shards: int = 6) -> Path:
    generator = random.Random(seed)
    return write_set(folder, {f"{number:06d}.tar": generator.randbytes(SMALL) for number in range(num_shards)})


def kept(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in cache.glob("mavil-*/shards/*")}


def test_a_cached_shard_is_not_fetched_again(tmp_path: Path) -> None:
    source, cache = small_set(tmp_path / "set"), tmp_path / "cache"
    with serve(files_of(source)) as server:
        for _ in range(2):
            storage = cached(server.address, cache)
            assert whole(storage, "000001.tar", 999) == (source / "000001.tar").read_bytes()
        names = [name for name, _ in server.requests]
        assert names.count("000001.tar") == names.count(CLIPS) == names.count(LABELS) == 1
        assert names.count("index.json") == 2
        path = next(cache.glob("*/shards/000001.tar"))
        path.write_bytes(b"damaged by somebody")
        assert whole(cached(server.address, cache), "000001.tar") == (source / "000001.tar").read_bytes()


def test_the_cache_keeps_its_bound_and_what_was_used_last(tmp_path: Path) -> None:
    source, cache = small_set(tmp_path / "set"), tmp_path / "cache"
    with serve(files_of(source)) as server:
        storage = cached(server.address, cache, shards=3.5)
        for number in range(4):
            storage.read(f"{number:06d}.tar", 0, 10)
            assert len(kept(cache)) == min(number + 1, 3)
        for number, path in enumerate(sorted(cache.glob("*/shards/*"))):
            os.utime(path, (1 + number, 1 + number))
        for number in (1, 4, 5):
            storage.read(f"{number:06d}.tar", 0, 10)
        assert set(kept(cache)) == {"000001.tar", "000004.tar", "000005.tar"}
        with pytest.raises(UserError, match=r"does not fit into a cache of .* raise data.remote.cache_gib"):
            cached(server.address, cache, shards=0.5).read("000000.tar", 0, 10)


def test_sets_do_not_mix_and_a_new_one_at_the_same_address_is_noticed(tmp_path: Path) -> None:
    cache, sets = tmp_path / "cache", [small_set(tmp_path / str(seed), seed) for seed in range(3)]
    with serve(files_of(sets[0])) as first, serve(files_of(sets[1])) as second:
        for server, source in ((first, sets[0]), (second, sets[1])):
            assert whole(cached(server.address, cache), "000000.tar") == (source / "000000.tar").read_bytes()
        second.files = first.files
        assert whole(cached(second.address, cache), "000001.tar") == (sets[0] / "000001.tar").read_bytes()
        assert len(list(cache.glob("mavil-*"))) == 3
        first.files = files_of(sets[2])
        assert whole(cached(first.address, cache), "000000.tar") == (sets[2] / "000000.tar").read_bytes()


def test_a_wrong_checksum_is_a_failed_try(tmp_path: Path) -> None:
    source, cache = small_set(tmp_path / "set"), tmp_path / "cache"
    with serve(files_of(source)) as server:
        storage = cached(server.address, cache)
        server.faults["000000.tar"] = ["wrong", "wrong"]
        assert whole(storage, "000000.tar") == (source / "000000.tar").read_bytes()
        server.faults["000001.tar"] = ["wrong"] * 3
        with pytest.raises(UserError, match="has not the checksum that the index says, 3 tries"):
            storage.read("000001.tar", 0, 10)
        assert set(kept(cache)) == {"000000.tar"}
        server.faults["000002.tar"] = ["404"]
        with pytest.raises(UserError, match="not found"):
            storage.read("000002.tar", 0, 10)
        assert set(kept(cache)) == {"000000.tar"}


def read_many(address: str, cache: str, source: str) -> tuple[int, bool]:
    """In a process of its own: shards in an order of its own; how many were right, and whether the bound held."""
    generator = random.Random(os.getpid())
    storage = cached(address, Path(cache), shards=3.5)
    num_right, is_bounded = 0, True
    for _ in range(15):
        name = f"{generator.randrange(6):06d}.tar"
        num_right += whole(storage, name, 20_000) == (Path(source) / name).read_bytes()
        complete = list(Path(cache).glob("mavil-*/shards/*.tar"))
        is_bounded &= len(complete) <= 4  # one may appear while the other process adds up
    return num_right, is_bounded


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    source, cache = small_set(tmp_path / "set"), tmp_path / "cache"
    with serve(files_of(source)) as server:
        results = run_in_ranks(read_many, server.address, str(cache), str(source))
    assert results == [(15, True)] * 2
    assert {name: (source / name).stat().st_size for name in kept(cache)} == kept(cache)  # whole, and no partial ones


KILLED = """
import sys
from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.storage import open_storage
open_storage(sys.argv[1], RemoteOptions(cache=sys.argv[2], timeout_seconds=20.0)).read("000000.tar", 0, 10)
"""


def test_a_kill_during_a_download_leaves_no_half_shard(tmp_path: Path) -> None:
    source, cache = small_set(tmp_path / "set"), tmp_path / "cache"
    with serve(files_of(source)) as server:
        server.faults["000000.tar"] = ["stall"]
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.address, str(cache)])
        wait_until(lambda: any(name == "000000.tar" for name, _ in server.requests))
        process.kill()
        process.wait()
        (left,) = kept(cache)
        assert left.endswith(".partial")
        storage = cached(server.address, cache)
        assert whole(storage, "000000.tar") == (source / "000000.tar").read_bytes()
        assert left in kept(cache)  # it may be in use by a process elsewhere
        os.utime(next(cache.glob(f"*/shards/{left}")), times=(0, time.time() - partial_files.STALE_SECONDS - 1))
        storage.read("000001.tar", 0, 10)
        assert set(kept(cache)) == {"000000.tar", "000001.tar"}


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    source = small_set(tmp_path / "set")
    (tmp_path / "file").write_text("")
    with serve(files_of(source)) as server, pytest.raises(UserError, match=r"cannot be written to .*data.remote.cache"):
        cached(server.address, tmp_path / "file")
