"""One server for all tests of this folder: starting one costs seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.server import MOST_REQUESTS, Server, running
from tests.support.stored_embeddings import searchable


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Over four clips in a shard; it takes 1 MB."""
    pytest.importorskip("fastapi", reason="mavil[serve] is not installed")
    pytest.importorskip("uvicorn", reason="mavil[serve] is not installed")
    options = ("--max-upload-mb", 1, "--max-requests", MOST_REQUESTS, "--workers", 1)
    with running(searchable().index_of_shards, tmp_path_factory.mktemp("server"), *options) as server:
        yield server
