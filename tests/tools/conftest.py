"""The tools' command lines inside the test's own process: a new one would take seconds to import torch."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "download.py"

Download = Callable[..., tuple[int, str, str]]
"""``download("esc50", "--out", ...)`` -> (exit code, standard output, standard error)."""


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Download]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script changes the first entry
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        answer = capsys.readouterr()
        return int(caught.value.code or 0), answer.out, answer.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
