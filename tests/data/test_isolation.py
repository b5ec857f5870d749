"""Work in processes that may hang or die: order, what a failure costs, and that nothing is left running."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mavil.data.isolation import LOOK_AHEAD_PER_WORKER, Outcome, map_isolated


def work(item: object) -> object:
    """What the item asks for."""
    if item == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        time.sleep(60)
    if item == "late":
        raise TimeoutError("the function's own")
    if item == "wrong":
        raise KeyError("a mistake of ours")
    return os.getpid() if item == "who" else item


def outcomes(items: object, workers: int = 2, seconds: float = 30.0) -> list[Outcome]:
    found = map_isolated(
        work, items, workers=workers, seconds_per_item=seconds, description="test", show_progress=False
    )
    return list(found)


def test_values_come_in_the_order_of_the_items_from_other_processes() -> None:
    found = outcomes([*range(100), "who"])
    assert [outcome.item for outcome in found] == [*range(100), "who"]
    assert [outcome.value for outcome in found[:100]] == list(range(100))
    assert found[100].value != os.getpid()
    assert outcomes(["who"], workers=0)[0].value == os.getpid()


def test_a_worker_that_dies_or_hangs_costs_its_own_item_only() -> None:
    items = [0, "die", 1, 2, "hang", 3, "die", 4]
    expected = {"die": "killed", "hang": "timeout"}
    found = outcomes(items, seconds=0.7)
    assert [outcome.failure for outcome in found] == [expected.get(item) for item in items]  # type: ignore[call-overload]
    assert [outcome.value for outcome in found] == [None if item in expected else item for item in items]


def test_workers_that_all_die_at_once_lose_nothing() -> None:
    found = outcomes(["die", "die", "die", "die", 5])
    assert [outcome.failure for outcome in found] == ["killed"] * 4 + [None]


@pytest.mark.parametrize(("item", "error"), [("wrong", KeyError), ("late", TimeoutError)])
@pytest.mark.parametrize("workers", [0, 1])
def test_exceptions_of_the_function_are_raised_here(item: str, error: type[Exception], workers: int) -> None:
    with pytest.raises(error):
        outcomes([1, item, 2], workers=workers)


def test_items_are_drawn_as_they_are_needed() -> None:
    drawn = []
    before = set(multiprocessing.active_children())  # other tests keep theirs

    def endless() -> Iterator[int]:
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    results = map_isolated(
        work, endless(), workers=1, seconds_per_item=30, description="test", show_progress=False, total=10
    )
    assert [next(results).value for _ in range(3)] == [0, 1, 2]
    assert len(drawn) <= 3 + LOOK_AHEAD_PER_WORKER
    results.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= before


def test_a_function_that_no_worker_can_load_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="end before they have done anything"):
        list(map_isolated(Unloadable(), [1], workers=1, seconds_per_item=30, description="test", show_progress=False))


class Unloadable:
    """Ends every process that unpickles it."""

    def __call__(self, item: object) -> object:
        return item

    def __reduce__(self) -> object:
        return os._exit, (3,)


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without
sys.path.insert(0, {root!r})
from functools import partial
from tests.data.test_isolation import report_and_hang
from pathlib import Path
from mavil.data.isolation import map_isolated
if __name__ == "__main__":
    function = partial(report_and_hang, Path({folder!r}))
    list(map_isolated(function, [1, 2], workers=2, seconds_per_item=60, description="", show_progress=False))
"""


def report_and_hang(folder: Path, item: int) -> None:
    """Leave the number of this process in the folder."""
    (folder / f"{item}.tmp").write_text(str(os.getpid()))
    os.replace(folder / f"{item}.tmp", folder / f"{item}.pid")
    time.sleep(60)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_program(tmp_path: Path, ending: signal.Signals) -> None:
    root = str(Path(__file__).parents[2])
    (tmp_path / "program.py").write_text(PROGRAM.format(root=root, folder=str(tmp_path)))
    process = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], stderr=subprocess.DEVNULL)
    wait_for(lambda: process.poll() is not None or len(list(tmp_path.glob("*.pid"))) == 2, seconds=60)
    assert process.poll() is None, "the program ended by itself"
    workers = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    process.send_signal(ending)
    process.wait(20)
    wait_for(lambda: not any(is_alive(worker) for worker in workers), seconds=20)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: object, seconds: float) -> None:
    """Until the condition holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
