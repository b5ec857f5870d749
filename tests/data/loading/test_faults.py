"""What ends a worker, hangs it or takes too long: the batches go on unchanged, or one clear line ends the run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch.utils.data import dataloader

from mavil.data.deadline import TimeLimitExceeded, time_limit
from mavil.data.loading.loader import Loader
from mavil.data.loading.samples import ClipDecoder
from mavil.data.stream.clips import RawClip
from mavil.structs import Sample, UserError
from tests.data.loading.test_loader import assert_same, loader_of, sounds, take


@dataclass
class Fragile(ClipDecoder):
    """Something happens at the clip ``victim``, as often as there are files ``0``, ``1`` ... missing in ``notes``."""

    victim: str = ""
    fate: str = ""
    times: int = 1
    notes: Path = Path()

    def decode(self, raw: RawClip) -> list[Sample]:
        if raw.key == self.victim:
            happened = len(list(self.notes.iterdir()))
            if happened < self.times:
                (self.notes / str(happened)).touch()
                _FATES[self.fate]()
        return super().decode(raw)


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _be_killed_holding_locks() -> None:
    """As a process killed in the moment in which it hands something over, or looks whether the loader was closed."""
    frame = sys._getframe()
    while frame.f_code.co_name != "_worker_loop":
        assert frame.f_back is not None
        frame = frame.f_back
    handing_over, looking = frame.f_locals["data_queue"]._wlock, getattr(frame.f_locals["done_event"], "_cond", None)
    for lock in (handing_over, looking):
        if lock is not None:
            lock.acquire(block=False)
    _be_killed()


def _work_for_ever() -> None:
    while True:
        pass


def _hang_deaf() -> None:
    """As a decoder that hangs in its own code: no Python signal handler runs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(30)


def _be_stopped() -> None:
    """As a process that does not run for longer than a clip may take, and then goes on."""
    time.sleep(0.3)


def _wait_for_ever() -> None:
    """As a decoder that waits for what never comes, and is woken by signals."""
    time.sleep(30)


_FATES = {
    "killed": _be_killed,
    "killed holding locks": _be_killed_holding_locks,
    "busy": _work_for_ever,
    "deaf": _hang_deaf,
    "stopped": _be_stopped,
    "waiting": _wait_for_ever,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds(tmp_path_factory.mktemp("sounds"), shards=4, clips=6)


@pytest.fixture(autouse=True)
def _quick_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks for dead workers every 5 s while it waits."""
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def fragile(folder: Path, notes: Path, fate: str, times: int = 1, victim: str = "s1c2", **settings: object) -> Loader:
    notes.mkdir(exist_ok=True)
    whole = {"num_workers": 2, "clip_seconds_limit": 0.5, **settings}
    loader = loader_of(folder, **whole)
    own = loader._deliveries
    decoder = Fragile(**vars(own.decoder), victim=victim, fate=fate, times=times, notes=notes)
    return Loader(replace(own, decoder=decoder), loader._tally, int(str(whole["num_workers"])), False)


@pytest.mark.parametrize("victim", ["s1c2", "s0c1"])  # met by one worker and by the other
@pytest.mark.parametrize("fate", ["killed", "killed holding locks"])
def test_a_killed_worker_changes_no_batch(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fate: str, victim: str
) -> None:
    loader = fragile(folder, tmp_path / "notes", fate, victim=victim)
    assert_same(take(loader, 12), take(loader_of(folder, num_workers=2), 12))
    assert loader.skip_counts == {}
    assert "a loader worker was killed by SIGKILL (out of memory?); a new one goes on" in caplog.text
    # The next pass begins where this one did.
    assert_same(take(loader, 3), take(loader_of(folder, num_workers=2), 3))


def test_a_worker_killed_between_batches_interrupts_nothing(folder: Path) -> None:
    loader = loader_of(folder, num_workers=2)
    batches = iter(loader)
    first = [next(batches)]
    for process in loader._processes._iterator._workers:  # type: ignore[union-attr]
        process.kill()
    time.sleep(0.3)  # a training step
    assert_same(first + [next(batches) for _ in range(5)], take(loader_of(folder, num_workers=2), 6))


@pytest.mark.parametrize("fate", ["killed", "deaf"])
def test_a_clip_that_ends_two_workers_is_left_out(folder: Path, tmp_path: Path, fate: str) -> None:
    loader = fragile(folder, tmp_path / "notes", fate, times=99, training=False, clip_seconds_limit=0.2)
    keys = sorted(key for batch in loader for key in batch.keys)
    assert keys == sorted(f"s{shard}c{clip}" for shard in range(4) for clip in range(6) if (shard, clip) != (1, 2))
    assert loader.skip_counts == {"killed_worker": 1}
    assert len(list((tmp_path / "notes").iterdir())) == 2


@pytest.mark.parametrize(("num_workers", "fate"), [(0, "busy"), (1, "busy"), (1, "waiting")])
def test_a_clip_that_takes_too_long_is_left_out(folder: Path, tmp_path: Path, num_workers: int, fate: str) -> None:
    loader = fragile(
        folder, tmp_path / "notes", fate, times=99, training=False, num_workers=num_workers, clip_seconds_limit=0.2
    )
    assert sum(len(batch) for batch in loader) == 23
    assert loader.skip_counts == {"timeout": 1}
    assert len(list((tmp_path / "notes").iterdir())) == 1  # no second process


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_clip_is_not_left_out_because_the_process_was_stopped(folder: Path, tmp_path: Path, num_workers: int) -> None:
    loader = fragile(
        folder, tmp_path / "notes", "stopped", training=False, num_workers=num_workers, clip_seconds_limit=0.2
    )
    assert sum(len(batch) for batch in loader) == 24
    assert loader.skip_counts == {}
    assert len(list((tmp_path / "notes").iterdir())) == 1  # nor was it decoded anew


def test_workers_that_keep_dying_end_the_run_in_one_line(folder: Path, tmp_path: Path) -> None:
    loader = fragile(folder, tmp_path / "notes", "killed", times=99)
    loader._deliveries.decoder.__class__ = DeadOnArrival
    with pytest.raises(UserError, match=r"loader workers died 5 times in a row \(was killed by SIGKILL") as caught:
        take(loader, 1)
    assert "\n" not in str(caught.value)


class DeadOnArrival(Fragile):
    def __reduce__(self) -> tuple[object, tuple[()]]:
        return _be_killed_when_loaded, ()


def _be_killed_when_loaded() -> None:
    _be_killed()


def test_the_limit_interrupts_and_is_taken_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeLimitExceeded), time_limit(0.05, ends_process=False):
        _work_for_ever()
    assert signal.getsignal(signal.SIGALRM) is before
    with time_limit(0.05, ends_process=False):
        pass
    time.sleep(0.1)  # a forgotten alarm would end the tests here


def test_work_that_hardly_runs_has_its_time_twice_and_no_more() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeLimitExceeded), time_limit(0.1, ends_process=False):
        time.sleep(30)
    assert 0.2 <= time.monotonic() - begin < 20


def test_outside_the_main_thread_there_is_no_limit() -> None:
    done = threading.Event()

    def work() -> None:
        with time_limit(0.01, ends_process=False):
            time.sleep(0.05)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(2)
    assert done.is_set()
