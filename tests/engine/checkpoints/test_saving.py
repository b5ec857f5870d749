"""Saving: training goes on meanwhile, nothing that fails or is killed costs an earlier checkpoint, the best one stays."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mavil.engine.checkpoints import host_copy
from mavil.engine.checkpoints import writing as checkpoint_writing
from mavil.engine.checkpoints.best import best_of
from mavil.engine.checkpoints.folder import checkpoints
from mavil.engine.checkpoints.host_copy import HostCopy
from mavil.engine.checkpoints.reading import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
)
from mavil.engine.checkpoints.saving import Saver, prefixes_of
from mavil.engine.run.lock import holding
from mavil.structs import TrainState, UserError
from tests.engine.checkpoints.test_reading import MODULES, content, flip, names_in, save
from tests.support.ranks import run_in_ranks


class Gate:
    """Holds every write back until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        write = checkpoint_writing._write_file

        def wait(*arguments: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(20)
            return write(*arguments)

        patch.setattr(checkpoint_writing, "_write_file", wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def fail_writes(patch: pytest.MonkeyPatch, times: int = 1000) -> None:
    """As on a full disk, in the middle of a file."""
    write, left = checkpoint_writing._HashedFile.write, [times]

    def fail(self: Any, data: Any) -> int:
        if self.size > 500 and left[0] > 0:
            left[0] -= 1
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return write(self, data)

    patch.setattr(checkpoint_writing._HashedFile, "write", fail)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, gate: Gate) -> None:
    """What is written is what the weights were when it was saved."""
    saver = Saver(tmp_path, MODULES, 5)
    checkpoint = content(1, position={"seen": [1]})
    saver.save(checkpoint)
    assert gate.reached.wait(20)
    assert latest_checkpoint(tmp_path) is None
    for value in (*checkpoint.model.values(), *checkpoint.averaged.values()):
        value.fill_(-1)
    for moments in checkpoint.optimizer.values():
        moments["exp_avg"].fill_(-1)
    assert checkpoint.state.position is not None
    checkpoint.state.position["seen"].append(2)
    checkpoint.averages["loss/total"].append(-1.0)
    gate.opened.set()
    assert saver.settle() is None
    loaded, expected = load_checkpoint(tmp_path / "checkpoints/step_00000001"), content(1)
    assert torch.equal(loaded.model["head.weight"], expected.model["head.weight"])
    assert torch.equal(loaded.averaged["head.weight"], expected.averaged["head.weight"])
    assert torch.equal(loaded.optimizer["head.weight"]["exp_avg"], expected.optimizer["head.weight"]["exp_avg"])
    assert loaded.state.position == {"seen": [1]}
    assert loaded.averages == {"loss/total": [1.5, 1.0]}


def test_the_next_save_waits_for_the_one_before_and_counts_it(tmp_path: Path, gate: Gate) -> None:
    saver = Saver(tmp_path, MODULES, 5)
    saver.save(content(1))
    unblocked = saver.seconds_blocked
    threading.Timer(0.4, gate.opened.set).start()
    saver.save(content(2))
    assert saver.seconds_blocked - unblocked > 0.3
    assert saver.settle() is None
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000001", "step_00000002"]
    assert [load_checkpoint(p).state.step for p in checkpoints(tmp_path)] == [1, 2]
    assert unblocked < 10  # the gate would hold it for 20


def test_closing_waits(tmp_path: Path, gate: Gate) -> None:
    saver = Saver(tmp_path, MODULES, 5)
    saver.save(content(1))
    threading.Timer(0.2, gate.opened.set).start()
    saver.close()
    assert load_checkpoint(tmp_path / "checkpoints/step_00000001").state.step == 1


def test_host_memory_is_used_again() -> None:
    copies = HostCopy()
    tree = {"a": {"x": torch.arange(5.0), "y": torch.ones(3, dtype=torch.bfloat16)}, "n": 3, "e": torch.empty(0, 2)}
    first = copies.take(tree)
    assert first["n"] == 3
    assert first["e"].shape == (0, 2)
    places = [first["a"][name].data_ptr() for name in "xy"]
    tree["a"]["x"] += 1
    assert torch.equal(first["a"]["x"], torch.arange(5.0))
    second = copies.take(tree)
    assert [second["a"][name].data_ptr() for name in "xy"] == places
    assert torch.equal(second["a"]["x"], torch.arange(1.0, 6.0))
    assert torch.equal(second["a"]["y"], torch.ones(3, dtype=torch.bfloat16))


def test_host_memory_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that do not fit the rest of a piece, or any piece; and other tensors than the time before."""
    monkeypatch.setattr(host_copy, "CHUNK_BYTES", 1024)
    copies = HostCopy()
    for sizes in ([100, 100, 100, 3000, 1], [1, 3000, 100, 100, 100], [256, 256, 257, 255], [5]):
        tree = {str(i): torch.randn(size) for i, size in enumerate(sizes)}
        tree["t"] = torch.randn(7, 5).t()
        copied = copies.take(tree)
        for name, value in tree.items():
            assert torch.equal(copied[name], value)
            assert copied[name].is_contiguous()
            assert copied[name].untyped_storage().nbytes() == value.nbytes  # or torch.save would write more


@pytest.mark.gpu
def test_copies_from_cuda_are_pinned_and_stand_still() -> None:
    value = torch.randn(1_000_000, device="cuda")
    before = value.cpu()
    copied = HostCopy().take({"x": value})
    value.zero_()
    torch.cuda.synchronize()
    assert torch.equal(copied["x"], before)
    assert copied["x"].is_pinned()


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    saver = Saver(tmp_path, MODULES, 2)
    for step in range(1, 7):
        saver.save(content(step))
        if step in (2, 4):
            saver.mark_best(step, "accuracy", step / 10)
        assert saver.best == {1: None, 2: 0.2, 3: 0.2}.get(step, 0.4)
    saver.settle()
    assert names_in(tmp_path) == ["best", "best.json", "step_00000004", "step_00000005", "step_00000006"]
    assert os.readlink(tmp_path / "checkpoints/best") == "step_00000004"
    assert json.loads((tmp_path / "checkpoints/best.json").read_text()) == {
        "step": 4,
        "metric": "accuracy",
        "value": 0.4,
    }
    again = Saver(tmp_path, MODULES, 1)
    assert (again.best, again.best_metric) == (0.4, "accuracy")
    again.save(content(7))
    again.settle()
    assert names_in(tmp_path) == ["best", "best.json", "step_00000004", "step_00000007"]


def test_the_best_is_marked_once_it_is_written(tmp_path: Path, gate: Gate) -> None:
    saver = Saver(tmp_path, MODULES, 2)
    saver.save(content(1))
    threading.Timer(0.2, gate.opened.set).start()
    saver.mark_best(1, "accuracy", 0.5)
    assert float(load_weights(tmp_path, "best")["head"]["weight"][0, 0]) == 0.5


def test_a_step_without_checkpoint_cannot_be_the_best(tmp_path: Path) -> None:
    saver = Saver(tmp_path, MODULES, 2)
    saver.save(content(1))
    with pytest.raises(ValueError, match="step 2 has no checkpoint to be marked as the best") as caught:
        saver.mark_best(2, "accuracy", 0.5)
    assert not isinstance(caught.value, UserError)
    assert saver.best is None


def test_a_best_whose_write_failed_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(tmp_path, MODULES, 2)
    saver.save(content(1))
    saver.mark_best(1, "accuracy", 0.5)
    fail_writes(monkeypatch, times=1)
    saver.save(content(2))
    saver.mark_best(2, "accuracy", 0.75)
    assert "step 2 was the best so far, but has no checkpoint" in caplog.text
    assert saver.best == 0.5
    assert os.readlink(tmp_path / "checkpoints/best") == "step_00000001"


def test_a_best_that_was_damaged_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2) / "model.pt")
    Saver(tmp_path, MODULES, 2).mark_best(2, "accuracy", 0.5)
    assert newest_checkpoint(tmp_path) is not None
    saver = Saver(tmp_path, MODULES, 2)
    assert saver.best is None
    assert "step_00000002, the best checkpoint so far, is gone" in caplog.text
    with pytest.raises(UserError, match="no best checkpoint"):
        load_weights(tmp_path, "best")
    saver.mark_best(1, "accuracy", 0.25)
    assert saver.best == 0.25


def test_a_mark_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    Saver(tmp_path, MODULES, 2).mark_best(1, "accuracy", 0.5)
    link = tmp_path / "checkpoints" / "best"
    (link.parent / "best.json").write_text('{"step": 2, "metric": "accuracy", "value": 0.75}')
    (link.parent / ".best.partial").symlink_to("step_00000002")
    assert Saver(tmp_path, MODULES, 2).best == 0.75
    assert os.readlink(link) == "step_00000002"
    (link.parent / "best.json").write_text("{")
    assert best_of(tmp_path) is None


def test_a_failed_save_is_told_at_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(tmp_path, MODULES, 1)
    saver.save(content(1))
    assert saver.settle() is None
    fail_writes(monkeypatch, times=1)
    saver.save(content(2))
    problem = saver.settle()
    assert problem is not None
    assert "step_00000002: the checkpoint could not be written ([Errno 28] No space left on device); earlier" in problem
    assert caplog.messages == [f"{problem}. Training goes on and tries again at the next save"]
    assert names_in(tmp_path) == ["step_00000001"]
    assert load_checkpoint(tmp_path / "checkpoints/step_00000001").state.step == 1
    saver.save(content(3))
    assert saver.settle() is None
    assert names_in(tmp_path) == ["step_00000003"]


def test_the_third_failure_in_a_row_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Saver(tmp_path, MODULES, 2)
    with monkeypatch.context() as patch:
        fail_writes(patch, times=2)
        for step in (1, 2, 3):  # the third succeeds: it counts from the beginning again
            saver.save(content(step))
        fail_writes(patch)
        for step in (4, 5):
            saver.save(content(step))
        with pytest.raises(
            UserError, match=r"step_00000006: .*3 saves in a row have failed.*step_00000003 is the newest"
        ):
            saver.save(content(6))
    assert names_in(tmp_path) == ["step_00000003"]


def test_too_little_space_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Saver(tmp_path, MODULES, 2)
    usage = shutil.disk_usage(tmp_path)

    def little(_: Path) -> Any:
        return usage._replace(free=2**20)

    def never(*_: Any) -> None:
        raise AssertionError("it was written")

    monkeypatch.setattr(shutil, "disk_usage", little)
    monkeypatch.setattr(checkpoint_writing, "_write_file", never)
    saver.save(content(1))
    assert "needs 0.00 GiB and 0.00 GiB are free on its disk" in (saver.settle() or "")


def test_no_memory_for_the_copy_is_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nC++ trace")

    monkeypatch.setattr(HostCopy, "_chunk", fail)
    saver = Saver(tmp_path, MODULES, 2)
    saver.save(content(1))
    assert (saver.settle() or "").endswith(
        "(no memory for a copy: DefaultCPUAllocator: can't allocate memory); earlier checkpoints are untouched"
    )


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 6 MiB; free space looks sufficient until something else takes it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted only by root")
    try:
        saver = Saver(disk, {"whole": ""}, 1)
        saver.save(large(1, mebibytes=2))
        assert saver.settle() is None
        saver.save(large(2, mebibytes=3.5))
        assert "free on its disk" in (saver.settle() or "")
        (disk / "other").write_bytes(bytes(3 * 2**20))
        checkpoint_writing_free = checkpoint_writing._check_space
        checkpoint_writing._check_space = lambda *_: None  # type: ignore[assignment]
        try:
            saver.save(large(3, mebibytes=2))
            assert "No space left on device" in (saver.settle() or "")
        finally:
            checkpoint_writing._check_space = checkpoint_writing_free
        assert names_in(disk) == ["step_00000001"]
        (disk / "other").unlink()
        saver.save(large(4, mebibytes=2))
        assert saver.settle() is None
        assert names_in(disk) == ["step_00000004"]
        assert load_checkpoint(disk / "checkpoints/step_00000004").state.step == 4
    finally:
        subprocess.run(["umount", disk], check=True)


def large(step: int, mebibytes: float) -> Checkpoint:
    values = {"w": torch.full((int(mebibytes * 2**18),), float(step))}
    return Checkpoint(values, {}, TrainState(step, step), None, {})


def _save_with_a_limit(run: Path) -> tuple[str | None, str | None]:
    saver = Saver(run, {"whole": ""}, 2)
    saver.save(large(1, 1))
    first = saver.settle()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        saver.save(large(2, 2))
        return first, saver.settle()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_kernel_refuses_to_write_more_and_every_rank_hears_it(tmp_path: Path) -> None:
    """A limit of the process stands for a quota: it works everywhere, and is met in the middle of a file."""
    (_, problem), other = run_in_ranks(_save_with_a_limit, tmp_path)
    assert "File too large" in (problem or "")
    assert other == (None, problem)
    assert names_in(tmp_path) == ["step_00000001"]


def test_what_interrupted_saves_left_behind_is_removed_and_damaged_ones_stay(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    for name in (
        ".step_00000002.partial",
        ".step_00000001.retired",
        ".step_00000001.replaced",
        ".step_00000000.damaged",
    ):
        (folder / name).mkdir()
        (folder / name / "model.pt").write_text("x")
    save(tmp_path, 2)
    assert names_in(tmp_path) == [".step_00000000.damaged", "step_00000001", "step_00000002"]


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1, position={"n": 1})
    path = save(tmp_path, 1, position={"n": 2})
    assert load_checkpoint(path).state.position == {"n": 2}
    assert names_in(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_replacing_a_checkpoint_never_loses_both(
    tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at the first and at the second rename."""
    save(tmp_path, 1, position={"n": 1})
    rename, calls = os.rename, [0]

    def stop(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] >= fails_at:
            raise OSError("cut off")
        rename(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        saver = Saver(tmp_path, MODULES, 1)
        saver.save(content(1, position={"n": 2}))
        saver.settle()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.state.position == {"n": 1}


def test_an_old_checkpoint_that_cannot_be_deleted_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        save(tmp_path, 2, keep=1)
    assert "the old checkpoint" in caplog.text
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000002"]
    save(tmp_path, 3, keep=1)
    assert names_in(tmp_path) == ["step_00000003"]


def test_a_value_that_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    saver = Saver(tmp_path, MODULES, 2)
    with pytest.raises(TypeError, match=r"rank 0: checkpoint\.state\.position\.shard is a .*numpy"):
        saver.save(content(1, position={"shard": np.int64(3)}))
    assert saver.settle() is None
    assert latest_checkpoint(tmp_path) is None


def _save_strange(run: Path) -> str:
    rank = torch.distributed.get_rank()
    try:
        Saver(run, MODULES, 2).save(content(1, position={"n": np.int64(3) if rank else 3}))
    except TypeError as error:
        return str(error)
    return "saved"


def test_a_strange_value_of_one_rank_stops_all(tmp_path: Path) -> None:
    first, second = run_in_ranks(_save_strange, tmp_path)
    assert first == second
    assert first.startswith("rank 1: checkpoint.state.position.n is a")


def _third_failure(run: Path) -> tuple[list[str], float | None]:
    """Rank 0 cannot write: ``checkpoints`` is a file."""
    saver = Saver(run, MODULES, 2)
    heard = []
    for step in (1, 2, 3):
        try:
            saver.save(content(step))
            heard.append(saver.settle() or "saved")
        except UserError as error:
            heard.append(f"UserError {error}")
    (run / "checkpoints").unlink(missing_ok=True)
    torch.distributed.barrier()
    saver.save(content(4))
    saver.mark_best(4, "accuracy", 0.5)
    return heard, saver.best


def test_every_rank_hears_the_same(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    first, second = run_in_ranks(_third_failure, tmp_path)
    assert first == second
    assert first[1] == 0.5
    assert ["File exists" in text for text in first[0]] == [True] * 3
    assert [text.startswith("UserError") for text in first[0]] == [False, False, True]
    assert "the run has no checkpoint at all" in first[0][2]


def test_a_run_that_was_taken_over_is_not_written_to(tmp_path: Path, gate: Gate) -> None:
    gate.opened.set()
    with holding(tmp_path):
        saver = Saver(tmp_path, MODULES, 2)
        saver.save(content(1))
        assert saver.settle() is None
        gate.opened.clear()
        gate.reached.clear()
        saver.save(content(2))
        assert gate.reached.wait(20)
        (tmp_path / "lock.1.json").unlink()  # while the write is under way
        gate.opened.set()
        assert "was taken over" in (saver.settle() or "")
        with pytest.raises(UserError, match="must not write to it"):
            saver.save(content(3))
        with pytest.raises(UserError, match="must not write to it"):
            saver.mark_best(1, "accuracy", 0.5)
        saver.close()
    assert names_in(tmp_path) == ["step_00000001"]


def test_prefixes_are_found_in_the_model() -> None:
    model = nn.ModuleDict({"encoders": nn.ModuleDict({"audio": nn.Linear(2, 2), "video": nn.Linear(2, 2)})})
    encoders = model["encoders"]
    assert isinstance(encoders, nn.ModuleDict)
    modules = {"audio_encoder": encoders["audio"], "whole": model}
    prefixes = prefixes_of(model, modules)
    assert prefixes == {"audio_encoder": "encoders.audio.", "whole": ""}
    for name, prefix in prefixes.items():
        names = [key.removeprefix(prefix) for key in model.state_dict() if key.startswith(prefix)]
        assert names == list(modules[name].state_dict())
    with pytest.raises(ValueError, match="stranger: not a part of the model"):
        prefixes_of(model, {"stranger": nn.Linear(1, 1)})


PROGRAM = """
import json, os, random, signal, sys, time, torch
from pathlib import Path
from mavil.engine.checkpoints.best import best_of
from mavil.engine.checkpoints.reading import newest_checkpoint
from mavil.engine.process.code_version import commit
from mavil.engine.checkpoints.saving import Saver
from tests.engine.checkpoints.test_saving import large
torch.set_num_threads(1)
commit()
run = Path(sys.argv[1])

def train(saves, told, marks=True):
    found = newest_checkpoint(run)
    first = found.state.step if found else 0
    saver = Saver(run, {"whole": ""}, 1)
    for step in range(first + 1, first + 1 + saves):
        os.write(told, b"began %d " % step)
        saver.save(large(step, 1))
        if marks:
            saver.mark_best(step, "accuracy", step)
            os.write(told, b"ended %d " % step)

def child(*arguments):
    # A fork, because importing torch takes longer than all saves; this process has no other thread.
    listening, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(listening)
        train(arguments[0], told, *arguments[1:])
        sys.exit(7)
    os.close(told)
    return pid, listening

def until_a_save_begins(listening):
    told = b""
    while told.count(b"began") < 1:
        told += os.read(listening, 1)
    return told

def heard(told, listening):
    with open(listening) as file:
        words = (told.decode() + file.read()).split()
    pairs = list(zip(words[::2], map(int, words[1::2])))
    return [max((s for w, s in pairs if w == which), default=None) for which in ("began", "ended")]
"""
KILLS = """
pauses = random.Random(0)
for _ in range(int(sys.argv[2])):
    before = newest_checkpoint(run)
    before = before.state.step if before else 0
    pid, listening = child(1000)
    told, started = until_a_save_begins(listening), time.monotonic()
    told += until_a_save_begins(listening)
    # Somewhere in the second or third save, however long one takes on this machine.
    time.sleep(pauses.uniform(0.0, 1.3 * (time.monotonic() - started)))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    began, ended = heard(told, listening)
    found, best = newest_checkpoint(run), best_of(run)
    print(json.dumps({
        "before": before, "began": began, "ended": ended, "found": found.state.step if found else 0,
        "is_whole": found is None or (found.remarks == [] and bool((found.model["w"] == found.state.step).all())),
        "best": best.step if best else None,
        "left": sorted(p.name for p in (run / "checkpoints").glob(".*")) if found else [],
    }))
"""
ENDINGS = """
pid, _ = child(3, False)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), newest_checkpoint(run).state.step)
pid, listening = child(100000)
while os.read(listening, 1000).count(b"ended") == 0:
    pass
os.kill(pid, signal.SIGTERM)
while os.read(listening, 1000):
    pass
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), newest_checkpoint(run).state.step > 3)
"""


def output_of(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", PROGRAM + program, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3], check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_kill_at_random_moments(tmp_path: Path) -> None:
    """kill -9, over and over in one run folder: the newest is the one that was being saved or the one before, and whole."""
    kills = [json.loads(line) for line in output_of(KILLS, tmp_path, 25)]
    assert len(kills) == 25
    for kill in kills:
        last = max(kill["ended"] or 0, kill["before"])
        assert kill["found"] in (last, kill["began"] or last), kill
        assert kill["is_whole"], kill
        assert kill["best"] in (kill["found"], kill["found"] - 1), kill
    assert any(".partial" in name for kill in kills for name in kill["left"])  # in the middle of a save
    assert kills[-1]["found"] > 10
    save(tmp_path, 10_000_000, keep=1)
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_a_program_that_ends_waits_for_its_last_checkpoint_and_one_that_is_terminated_leaves_the_one_before(
    tmp_path: Path,
) -> None:
    assert output_of(ENDINGS, tmp_path) == ["7 3", f"{-signal.SIGTERM} True"]


def test_writing_does_not_hold_training_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's lock is let go while bytes are hashed and written, or the main thread would stand still most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    saver = Saver(tmp_path, {"whole": ""}, 1)
    with caplog.at_level(logging.INFO):
        saver.save(large(1, 192))
        thread = saver._thread
        assert thread is not None
        started = last = time.perf_counter()
        longest = 0.0
        while thread.is_alive():
            time.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        assert saver.settle() is None
    assert longest < (last - started) / 2
    assert "step 1: checkpoint" in caplog.text
