"""The tools' command lines inside the test's own process: a new one would take seconds to import torch."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

Tool = Callable[..., tuple[int, str, str]]
"""``download("esc50", "--out", ...)`` -> (exit code, standard output, standard error)."""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Tool]:
    """``tool("scale")("--gpus", "8")`` runs a script of tools/ in this process."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script changes the first entry
    monkeypatch.setenv("COLUMNS", "250")

    def runner(name: str) -> Tool:
        script = str(TOOLS / f"{name}.py")

        def run(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            with pytest.raises(SystemExit) as caught:
                runpy.run_path(script, run_name="__main__")
            answer = capsys.readouterr()
            return int(caught.value.code or 0), answer.out, answer.err

        return run

    return runner


@pytest.fixture
def download(tool: Callable[[str], Tool]) -> Iterator[Tool]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tool("download")
    for number, handler in handlers.items():
        signal.signal(number, handler)
