"""A run that is killed at any moment and continued ends as if nothing had happened: real processes, SIGKILL, real clips."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mavil.recipe import dump_recipe
from tests.commands.conftest import NUM_TRAIN
from tests.support.kills import Moment, Torture, differences, draw_moments, newest_step
from tests.support.processes import Fresh, Launcher, Starter, shared_launcher, wait_for, wait_until
from tests.support.recipes import tiny_recipe

STEPS = 38
EVALUATE_EVERY = 4
TRAINER: dict[str, Any] = {
    "device_batch": 4,
    "device": "cpu",
    "num_threads": 1,
    "log_every": 1,
    # Some evaluations come together with a checkpoint, others between two.
    "checkpoint_every": "3 steps",
    "evaluate_every": f"{EVALUATE_EVERY} steps",
}
VIEWS = 2
CASES: dict[str, dict[str, Any]] = {
    "pretrain": {"trainer": TRAINER | {"best_metric": "audio_reconstruction", "best_is": "lowest", "ema_decay": 0.9}},
    # Random numbers outside the data (dropped paths), means over several steps, several micro-steps.
    "classify": {
        "task": {"kind": "classify", "drop_path": 0.5},
        "trainer": TRAINER | {"accumulation": 2, "log_every": 2, "device_batch": 3, "best_metric": "accuracy"},
    },
}
EVALUATIONS = {*range(EVALUATE_EVERY, STEPS + 1, EVALUATE_EVERY), STEPS}


@dataclass
class Undisturbed:
    """A run that nobody killed.

    Attributes:
        run: its folder.
        arguments: of ``mavil``, for the same run in another folder.
        batches: the clips of each of its batches.
        batches_per_step: micro-steps.
        start_seconds: from the start of its process to its first step: of the launcher's, and of the fresh one.
    """

    run: Path
    arguments: Callable[[Path], list[str]]
    batches: list[list[str]]
    batches_per_step: int
    start_seconds: dict[type[Starter], float]


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    return shared_launcher()


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    fresh = Fresh()
    yield fresh
    fresh.close()


@pytest.fixture(scope="module", params=["pretrain"])
def undisturbed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shards: Path,
    launcher: Launcher,
    fresh: Fresh,
) -> Undisturbed:
    """The run of a case, once in a fresh interpreter and once by the launcher; both end with the same bits."""
    folder = tmp_path_factory.mktemp("undisturbed")
    settings: dict[str, Any] = {
        "data": {
            "train": str(shards / "train"),
            "evaluation": str(shards / "gallery"),
            "num_workers": 2,
            "shuffle_buffer": 5,
            "views_per_clip": VIEWS,
        },
        "schedule": {"length": f"{STEPS} steps", "warmup": "1 step"},
        "optimizer": {"base_lr": 0.02},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_recipe(tiny_recipe(**settings, **CASES[request.param])))

    def arguments(run: Path) -> list[str]:
        return ["train", str(recipe), "--out", str(run), "--resume"]

    runs = folder / "whole", folder / "noted"
    whole = Torture(runs[0], fresh, arguments(runs[0]), EVALUATIONS)
    noted = Torture(runs[1], launcher, arguments(runs[1]), EVALUATIONS, notes_batches=True)
    assert whole.attempt()
    assert noted.attempt()
    assert differences(whole.run, noted.run) == []
    micro_steps = CASES[request.param]["trainer"].get("accumulation", 1)
    seconds: dict[type[Starter], float] = {Fresh: whole.start_seconds, Launcher: noted.start_seconds}
    return Undisturbed(whole.run, arguments, noted.batches(), micro_steps, seconds)


def endure(folder: Path, starter: Starter, undisturbed: Undisturbed, moments: list[Moment]) -> list[Torture]:
    """Runs that were killed at all these moments, one after the other, and then came to their end; all is compared."""
    notes_batches = isinstance(starter, Launcher)
    seconds = undisturbed.start_seconds[type(starter)]
    tortures: list[Torture] = []
    is_finished = True
    for moment in moments:
        if is_finished:  # there are moments left: another run
            run = folder / f"killed{len(tortures)}"
            arguments, micro_steps = undisturbed.arguments(run), undisturbed.batches_per_step
            tortures.append(Torture(run, starter, arguments, EVALUATIONS, notes_batches, seconds, micro_steps))
        is_finished = tortures[-1].attempt(moment)
    while not is_finished:
        is_finished = tortures[-1].attempt()
    for torture in tortures:
        assert differences(undisturbed.run, torture.run) == [], torture.attempts
        assert not notes_batches or torture.batches() == undisturbed.batches
        assert torture.orphans() == []
    return tortures


def summary(tortures: list[Torture]) -> str:
    places = Counter(at for torture in tortures for _, at in torture.kills)
    return f"{sum(places.values())} kills in {len(tortures)} runs of {STEPS} steps; they hit {dict(places)}"


def test_killed_at_random_moments_a_run_ends_with_the_same_bits(
    undisturbed: Undisturbed, launcher: Launcher, tmp_path: Path
) -> None:
    epoch: int = VIEWS * NUM_TRAIN // TRAINER["device_batch"]
    for start in range(0, STEPS - epoch + 1, epoch):  # what is compared with is itself right
        drawn = Counter(clip for batch in undisturbed.batches[start : start + epoch] for clip in batch)
        assert list(drawn.values()) == [VIEWS] * NUM_TRAIN
    tortures = endure(tmp_path, launcher, undisturbed, draw_moments(seed=1, count=10))
    assert {at for torture in tortures for _, at in torture.kills} >= {"start", "step", "save"}
    # Once more, now that there is nothing left to do.
    assert tortures[-1].attempt()
    assert differences(undisturbed.run, tortures[-1].run) == []


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", list(CASES), indirect=True)
def test_thirty_kills(
    undisturbed: Undisturbed, launcher: Launcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tortures = endure(tmp_path, launcher, undisturbed, draw_moments(seed=2, count=40))
    with capsys.disabled():
        print(f"\n{summary(tortures)}")
    assert sum(len(torture.kills) for torture in tortures) >= 30


@pytest.mark.slow
def test_kills_of_fresh_interpreters(
    undisturbed: Undisturbed, fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every start imports everything anew, as for a person: another order of sets, a fork server that starts slowly."""
    tortures = endure(tmp_path, fresh, undisturbed, draw_moments(seed=3, count=10))
    with capsys.disabled():
        print(f"\n{summary(tortures)}")


def flip_a_byte(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "model.pt").write_bytes(content)


def cut(checkpoint: Path) -> None:
    os.truncate(checkpoint / "optimizer.pt", 1000)


def remove_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut, remove_manifest])
def test_a_damaged_last_checkpoint_costs_its_steps_only(
    undisturbed: Undisturbed, launcher: Launcher, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed.run, run, symlinks=True)
    damage(run / f"checkpoints/step_{STEPS:08d}")
    assert Torture(run, launcher, undisturbed.arguments(run), EVALUATIONS).attempt()
    told = (tmp_path / "run.log").read_text()
    assert "this checkpoint is damaged" in told
    assert f"going on from step_{STEPS // 3 * 3:08d}" in told
    assert differences(undisturbed.run, run) == []


def test_a_run_folder_is_written_by_one_job_and_free_at_once_when_that_is_killed(
    undisturbed: Undisturbed, launcher: Launcher, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    arguments = [*undisturbed.arguments(run), "schedule.length=1000000 steps", "trainer.evaluate_every=null"]
    first = launcher.start(arguments, tmp_path, log)
    assert wait_until(lambda: newest_step(run) or None, 120)
    second = launcher.start(arguments, tmp_path, tmp_path / "second.log")
    assert wait_for(second, 60) == 2
    refusal = (tmp_path / "second.log").read_text().splitlines()[-1]
    assert f"mavil: {run} is being written by " in refusal
    assert str(first.pid) in refusal
    assert first.code() is None
    os.kill(first.pid, signal.SIGKILL)
    wait_for(first, 60)
    reached = newest_step(run)
    third = launcher.start(arguments, tmp_path, log)
    assert wait_until(lambda: newest_step(run) > reached or None, 120)
    assert "may have ended" not in log.read_text()  # it did not have to watch the lock for a while
    os.kill(third.pid, signal.SIGTERM)
    assert wait_for(third, 60) == 75
