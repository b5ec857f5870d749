"""Markers, seeds and threads for every test."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.support.ranks import stop_ranks


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow (minutes)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds; runs with --runslow")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped without one")
    # The machine may have few cores, and one thread makes CPU results the same on every machine.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --runslow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: torch finds no CUDA device here"))


def pytest_sessionfinish() -> None:
    stop_ranks()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers for every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
