"""A command line in this process, real shards and recipes that train in a second."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mavil import cli
from mavil.data.synthetic import make_synthetic_shards
from mavil.recipe import dump_recipe
from tests.support.recipes import tiny_recipe

NUM_TRAIN, NUM_GALLERY = 24, 12


@dataclass
class Outcome:
    """What a person would see."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``gallery`` below one folder; real mp4 clips that share nothing."""
    folder = tmp_path_factory.mktemp("shards")
    make_synthetic_shards(NUM_TRAIN, folder / "train", clips_per_shard=8, show_progress=False)
    make_synthetic_shards(NUM_GALLERY, folder / "gallery", first=NUM_TRAIN, clips_per_shard=8, show_progress=False)
    return folder


@pytest.fixture
def mavil(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Run ``mavil ARGUMENTS`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mavil", *map(str, arguments)])
        code = 0
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
        try:
            cli.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            # The program is over for those who read its output; this process lives on.
            for number, handler in before.items():
                signal.signal(number, handler)
        seen = capsys.readouterr()
        return Outcome(code, seen.out, seen.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path, shards: Path) -> Callable[..., Path]:
    """Write a recipe of some steps over the shards; keyword arguments replace whole top-level settings."""

    def write(name: str, steps: int = 4, **parts: object) -> Path:
        settings = {
            "name": name,
            "data": {
                "train": str(shards / "train"),
                "evaluation": str(shards / "gallery"),
                "num_workers": 0,
                "cache_gib": 0.5,
            },
            "schedule": {"length": f"{steps} steps", "warmup": "1 step"},
            "optimizer": {"base_lr": 0.02},
            "trainer": {
                "device_batch": 8,
                "device": "cpu",
                "num_threads": 1,
                "checkpoint_every": "3 steps",
                "log_every": 1,
            },
        }
        tree = yaml.safe_load(dump_recipe(tiny_recipe(**{**settings, **parts})))
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write
