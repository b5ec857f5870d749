"""Worker processes that read shards from a web server: the same batches, continued, and one line when it goes away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.weights import Draws
from mavil.structs import UserError
from tests.data.loading.test_loader import assert_same, loader_of, sounds, take
from tests.data.stream.remote_sets import files_of
from tests.support.http_server import FileServer, serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds(tmp_path_factory.mktemp("sounds"), shards=4, clips=6, broken=("s1c2",))


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with serve(files_of(folder)) as running:
        yield running


@pytest.mark.parametrize("with_cache", [False, True])
def test_batches_from_a_server_are_those_of_the_folder(
    folder: Path, server: FileServer, tmp_path: Path, with_cache: bool
) -> None:
    server.faults["000002.tar"] = ["500", "short"]
    remote = RemoteOptions(cache=str(tmp_path / "cache") if with_cache else None)
    here = take(loader_of(folder, num_workers=2), 9)
    there = loader_of(server.address, num_workers=2, remote=remote)
    assert_same(take(there, 9), here)
    assert there.counts["samples"] == 36
    assert there.counts["bytes_read"] > 0
    # A place in the data is worth the same wherever the shards lie.
    assert_same(take(loader_of(server.address, num_workers=2, remote=remote, places=[here[3].position]), 5), here[4:])


def test_evaluation_from_a_server_has_every_clip_once(server: FileServer) -> None:
    counts = Counter(key for batch in loader_of(server.address, training=False, num_workers=2) for key in batch.keys)
    assert len(counts) == 23
    assert set(counts.values()) == {1}


def test_weighted_draws_from_a_server_use_the_same_clips_and_report_what_they_cost(
    folder: Path, server: FileServer
) -> None:
    settings: dict[str, Any] = {"draws": Draws("classes", 12, replacement=False), "batch_size": 1, "num_workers": 1}
    here = take(loader_of(folder, **settings), 12)
    loader = loader_of(server.address, **settings)
    there = take(loader, 12)
    assert sorted(key for batch in here for key in batch.keys) == sorted(key for batch in there for key in batch.keys)
    with pytest.raises(UserError, match=r"sampling was .*local, is .*remote"):
        loader_of(server.address, places=[here[2].position], **settings)
    assert loader.counts["bytes_read"] / loader.counts["samples"] > 1000


def test_a_server_that_goes_away_ends_the_run_in_one_line(server: FileServer) -> None:
    loader = loader_of(server.address, num_workers=1, remote=RemoteOptions(tries=2, timeout_seconds=0.5))
    server.faults["000000.tar"] = server.faults["000001.tar"] = ["503"] * 99
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*503.*2 tries") as caught:
        take(loader, 12)
    assert "\n" not in str(caught.value)
