"""Services outside the run folder, played by modules with the signatures of wandb 0.31 and trackio 0.43."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from rich.console import Console

from mavil import distributed
from mavil.engine.metrics import loggers
from mavil.engine.metrics.loggers import check_loggers, open_loggers
from mavil.engine.metrics.tracker import Tracker
from mavil.structs import UserError
from tests.support.ranks import run_in_ranks

RECIPE = {"name": "fake", "trainer": {"log_every": 1}}
CONDITIONS = {"speed/clips_per_second": 12.5}


class FakeRun:
    """One run at a service, with the methods that both have."""

    url, dir = None, "somewhere"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False
        self.threads: set[int] = set()

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        self.threads.add(threading.get_ident())
        self.lines.append((step, data))

    def finish(self) -> None:
        self.is_finished = True


class UsageError(Exception):
    """What wandb raises without a key."""


class Services:
    """Both packages, as they were called."""

    def __init__(self) -> None:
        self.runs: list[FakeRun] = []
        self.has_key, self.is_name_taken = True, False
        self.wandb = ModuleType("wandb")
        self.wandb.init = self._init_wandb  # type: ignore[attr-defined]
        self.wandb.teardown = self._teardown_wandb  # type: ignore[attr-defined]
        self.trackio = ModuleType("trackio")
        self.trackio.init = self._init_trackio  # type: ignore[attr-defined]

    def _init_wandb(
        self,
        *,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | str | None = None,
        mode: Literal["online", "offline", "disabled", "shared"] | None = None,
        resume: bool | Literal["allow", "never", "must", "auto"] | None = None,
    ) -> FakeRun:
        if self.is_name_taken:
            raise RuntimeError(f"run ID {id} is in use")
        if not self.has_key and mode is None:
            self.is_name_taken = True
            raise UsageError("No API key configured. Use `wandb login` to log in.")
        return self._keep(locals())

    def _teardown_wandb(self, exit_code: int | None = None) -> None:
        self.is_name_taken = False

    def _init_trackio(
        self,
        project: str,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        resume: str = "never",
        embed: bool = True,
    ) -> FakeRun:
        return self._keep(locals())

    def _keep(self, settings: dict[str, Any]) -> FakeRun:
        self.runs.append(FakeRun({name: value for name, value in settings.items() if name != "self"}))
        return self.runs[-1]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    found = Services()
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, getattr(found, name))
        monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    for name in loggers._WANDB_DEFAULTS:
        monkeypatch.setenv(name, "before")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return found


def train(run: Path, steps: range, resumed_step: int = 0, names: tuple[str, ...] = ("wandb", "trackio")) -> None:
    with Tracker(run, 100, quiet(), resumed_step, loggers=open_loggers(names, run, RECIPE)) as tracker:
        for step in steps:
            tracker.log(step, {"loss/total": float(step)}, CONDITIONS)


def quiet() -> Console:
    return Console(quiet=True)


def test_a_run_is_known_by_its_folder_and_gets_every_number(services: Services, tmp_path: Path) -> None:
    run = tmp_path / "my_run"
    run.mkdir()
    check_loggers(["wandb", "trackio"])
    train(run, range(1, 4))
    identities = json.loads((run / "loggers.json").read_text())["identities"]
    by_service = {("dir" in one.settings): one for one in services.runs}
    wandb, trackio = by_service[True], by_service[False]
    assert wandb.settings == {
        "project": "mavil",
        "dir": str(run),
        "id": identities["wandb"],
        "name": "my_run",
        "config": RECIPE,
        "mode": None,
        "resume": "allow",
    }
    assert trackio.settings == {
        "project": "mavil",
        "name": f"my_run-{identities['trackio']}",
        "config": RECIPE,
        "resume": "allow",
        "embed": False,
    }
    for one in (wandb, trackio):
        assert one.is_finished
        assert [step for step, _ in one.lines] == [1, 2, 3]
        assert {"loss/total": 2.0, "speed/clips_per_second": 12.5}.items() <= one.lines[1][1].items()
        assert threading.get_ident() not in one.threads


def test_a_resumed_run_goes_on_where_it_was_and_sends_nothing_twice(services: Services, tmp_path: Path) -> None:
    train(tmp_path, range(1, 8), names=("wandb",))
    train(tmp_path, range(5, 7), resumed_step=4, names=("wandb",))  # cut off before it got as far as the first
    train(tmp_path, range(5, 10), resumed_step=4, names=("wandb", "trackio"))
    wandb = [one for one in services.runs if "dir" in one.settings]
    assert len({one.settings["id"] for one in wandb}) == 1
    assert [[step for step, _ in one.lines] for one in wandb] == [[1, 2, 3, 4, 5, 6, 7], [], [8, 9]]
    [trackio] = [one for one in services.runs if "dir" not in one.settings]
    assert [step for step, _ in trackio.lines] == [5, 6, 7, 8, 9]


def test_runs_of_one_name_are_told_apart(services: Services, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        train(tmp_path / parent / "run", range(1, 2))
    assert len({one.settings.get("id") or one.settings["name"] for one in services.runs}) == 4


def test_projects_come_from_the_environment(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "one")
    monkeypatch.setenv("TRACKIO_PROJECT", "other")
    train(tmp_path, range(0))
    assert {one.settings["project"] for one in services.runs} == {"one", "other"}


def test_without_a_key_wandb_keeps_the_run_in_the_folder(
    services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    services.has_key = False
    train(tmp_path, range(1, 3), names=("wandb",))
    [run] = services.runs
    assert run.settings["mode"] == "offline"
    assert len(run.lines) == 2
    assert "No API key" in caplog.text


def raising(*_: Any, **__: Any) -> Any:
    raise ConnectionError("no route")


def leaving(*_: Any, **__: Any) -> Any:
    raise SystemExit(1)


@pytest.mark.parametrize("failure", [raising, leaving])
@pytest.mark.parametrize("member", ["init", "log", "finish"])
def test_a_service_that_fails_is_told_once_and_training_goes_on(
    services: Services,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    member: str,
    failure: Callable[..., Any],
) -> None:
    monkeypatch.setattr(services.trackio if member == "init" else FakeRun, member, failure)
    train(tmp_path, range(1, 6), names=("trackio",))
    warnings = [message for message in caplog.messages if message.startswith("metrics no longer go to trackio: ")]
    assert len(warnings) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_service_that_stands_still_holds_nobody_up(
    services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(services.trackio, "init", lambda **_: is_over.wait(30))
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 0.2)
    began = time.monotonic()
    train(tmp_path, range(1, 4), names=("trackio",))
    assert time.monotonic() - began < 5
    assert "trackio has not taken all metrics" in caplog.text
    is_over.set()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_is_not_installed_is_said_before_training(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    with pytest.raises(UserError, match=f"trainer.loggers names {name}, .*pip install {name}") as caught:
        check_loggers([name])
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_that_name_is_not_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    try:
        with pytest.raises(UserError, match="wandb, which is not installed"):
            check_loggers(["wandb"])
    finally:
        sys.modules.pop("wandb", None)


def test_nobody_who_asks_for_no_logger_imports_or_writes_one(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers.importlib, "import_module", raising)
    check_loggers([])
    assert open_loggers([], tmp_path, RECIPE) == []
    assert list(tmp_path.iterdir()) == []


def loggers_of_a_rank(run: Path) -> tuple[int, int]:
    sys.modules["trackio"] = Services().trackio
    try:
        found = open_loggers(["trackio"], run, RECIPE)
        for one in found:
            one.close()
        return distributed.rank(), len(found)
    finally:
        del sys.modules["trackio"]


def test_only_rank_0_logs(tmp_path: Path) -> None:
    assert run_in_ranks(loggers_of_a_rank, tmp_path) == [(0, 1), (1, 0)]
