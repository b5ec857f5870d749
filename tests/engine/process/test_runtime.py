"""The choice of a device, generators that come back, log files, and what is recorded of the machine."""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from rich.console import Console

from mavil.engine.process import runtime
from mavil.structs import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "CUDA_VISIBLE", "RANK", "LOCAL_RANK"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have torch find so many CUDA devices."""

    def machine(num_devices: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return machine


def announce(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def slurm_task(local: int, per_node: int, **more: str) -> dict[str, str]:
    """The environment of a task on one node."""
    task = {
        "SLURM_JOB_ID": "3",
        "SLURM_PROCID": str(local),
        "SLURM_LOCALID": str(local),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_STEP_NUM_TASKS": str(per_node),
        "SLURM_STEP_TASKS_PER_NODE": str(per_node),
    }
    return task | more


def test_the_device_follows_the_setting_and_the_machine(machine: Callable[[int], None]) -> None:
    machine(0)
    assert runtime.choose_device("cpu") == CPU
    assert runtime.choose_device("auto") == CPU
    with pytest.raises(UserError, match=r"no CUDA device here: set trainer\.device=cpu"):
        runtime.choose_device("cuda")
    machine(2)
    assert runtime.choose_device("cpu") == CPU
    assert runtime.choose_device("auto") == torch.device("cuda", 0)


def test_each_rank_takes_the_device_of_its_number(
    machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(4)
    announce(monkeypatch, RANK="7", WORLD_SIZE="8", LOCAL_RANK="3", MASTER_ADDR="n1", MASTER_PORT="29500")
    assert runtime.choose_device("auto").index == 3
    machine(2)
    with pytest.raises(UserError, match=r"local rank 3 has no CUDA device: torch finds 2 on .*; start at most 2"):
        runtime.choose_device("auto")
    machine(1)  # one for all, and torchrun does not hide devices
    with pytest.raises(UserError, match="torch finds 1 on"):
        runtime.choose_device("auto")


@pytest.mark.parametrize(
    ("num_devices", "variables", "index"),
    [
        (4, {}, 3),  # --gpus-per-node=4: every task sees all
        (1, {}, 0),  # --gpus-per-task=1 or --gpu-bind=single:1: every task sees its own
        (2, {"SLURM_GPUS_PER_TASK": "2"}, 1),  # two of its own, of which it takes one
        (2, {"SLURMD_TRES_BIND": "gpu:per_task:2"}, 1),  # what srun sets for that, SLURM 22.05
    ],
)
def test_a_task_may_see_its_own_devices_only(
    machine: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    num_devices: int,
    variables: dict[str, str],
    index: int,
) -> None:
    machine(num_devices)
    announce(monkeypatch, **slurm_task(3, 4, **variables))
    assert runtime.choose_device("cuda").index == index


def test_more_tasks_than_devices_are_refused(machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(2)
    announce(monkeypatch, **slurm_task(3, 4))
    with pytest.raises(UserError, match="local rank 3 has no CUDA device: torch finds 2"):
        runtime.choose_device("cuda")


@pytest.mark.parametrize(
    ("setting", "variables", "words"),
    [
        ("cuda", {"SLURM_JOB_ID": "3"}, "SLURM job 3 has no GPU here: ask for some, e.g. with --gpus-per-node"),
        ("cuda", {"SLURM_JOB_ID": "3", "CUDA_VISIBLE_DEVICES": ""}, "SLURM job 3 has no GPU here"),
        (
            "cuda",
            {"SLURM_JOB_ID": "3", "SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"},
            "SLURM job 3 has no GPU here",
        ),
        ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is empty"),
        # Days on the wrong device are worse than a line.
        ("auto", {"SLURM_JOB_ID": "3", "SLURM_STEP_GPUS": "0,1"}, r"has GPUs \(SLURM_STEP_GPUS=0,1\), but"),
        ("cuda", {"SLURM_JOB_ID": "3", "SLURM_GPUS_ON_NODE": "2"}, r"has GPUs \(SLURM_GPUS_ON_NODE=2\), but"),
    ],
)
def test_why_there_is_no_gpu(
    machine: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    setting: Literal["auto", "cuda"],
    variables: dict[str, str],
    words: str,
) -> None:
    machine(0)
    announce(monkeypatch, **variables)
    with pytest.raises(UserError, match=words):
        runtime.choose_device(setting)


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "3"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_auto_is_the_cpu_where_nobody_asked_for_gpus(
    machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    machine(0)
    announce(monkeypatch, **variables)
    assert runtime.choose_device("auto") == CPU


@pytest.fixture
def _settings_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    state = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("_settings_as_before")
def test_results_repeat_on_the_cpu_always_and_on_cuda_when_asked() -> None:
    cuda = torch.device("cuda", 0)
    found = {}
    for device, deterministic in ((CPU, False), (cuda, False), (cuda, True)):
        runtime.settle(device, 1, deterministic)
        found[device.type, deterministic] = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )
    assert found == {
        ("cpu", False): (True, True, None),
        ("cuda", False): (False, False, None),
        ("cuda", True): (True, False, ":4096:8"),
    }


@pytest.mark.usefixtures("_settings_as_before")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asked of glibc alone")
def test_memory_that_is_given_back_is_not_fetched_from_the_system_again() -> None:
    runtime.settle(CPU, None)
    fetched = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**25)  # 128 MiB, 32768 pages
        fetched.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(fetched) < 1000, "every block is new"  # some are: small ones get between them


def test_generators_come_back_where_they_were() -> None:
    runtime.seed_everything(3, "rank", 1)
    state = runtime.random_state(CPU)
    first = random.random(), np.random.rand(), torch.rand(()).item()
    runtime.set_random_state(state, CPU)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == first
    runtime.seed_everything(3, "rank", 0)
    assert torch.rand(()).item() != first[2]


def test_the_log_goes_to_file_and_console_and_stops_with_the_run(tmp_path: Path) -> None:
    screen, logger = io.StringIO(), logging.getLogger("mavil.engine.trainer")
    with runtime.log_to(tmp_path, Console(file=screen)):
        logger.info("a line that is longer than the eighty columns Rich would break it at, %s", "x" * 40)
    logger.info("after the run")
    assert "a line that is longer" in (tmp_path / "log.rank0.txt").read_text()
    assert screen.getvalue().count("\n") == 1
    assert "after the run" not in (tmp_path / "log.rank0.txt").read_text()
    assert logging.getLogger("mavil").handlers == []


def test_the_environment_is_an_allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    runtime.record_environment(tmp_path, CPU)
    runtime.record_environment(tmp_path, CPU)
    text = (tmp_path / "environment.json").read_text()
    first, _ = json.loads(text)
    assert "secret-value" not in text
    assert first["variables"]["OMP_NUM_THREADS"] == "3"
    assert first["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert (first["ranks"], first["launcher"]) == (1, "a person")


@pytest.mark.gpu
def test_a_cuda_device_is_chosen_and_its_generator_comes_back() -> None:
    device = runtime.choose_device("auto")
    assert device.type == "cuda"
    state = runtime.random_state(device)
    first = torch.rand((), device=device).item()
    runtime.set_random_state(state, device)
    assert torch.rand((), device=device).item() == first
