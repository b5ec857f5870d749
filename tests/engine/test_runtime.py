"""Device and precision choices, generators that come back, signals, log files, and what is recorded of the machine."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mavil.engine import runtime
from mavil.structs import UserError

CPU = torch.device("cpu")


def test_the_device_follows_the_setting_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.choose_device("auto") == CPU
    with pytest.raises(UserError, match=r"no CUDA device here: set trainer\.device=cpu"):
        runtime.choose_device("cuda")


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="local rank 2 has no CUDA device: torch finds 2"):
        runtime.choose_device("auto")


def test_precision_is_bf16_only_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.choose_precision("auto", CPU) == "fp32"
    assert runtime.choose_precision("bf16", CPU) == "bf16"
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert runtime.choose_precision("auto", cuda) == "bf16"
    assert runtime.choose_precision("fp32", cuda) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    assert runtime.choose_precision("auto", cuda) == "fp32"
    with pytest.raises(UserError, match="Old Card does not compute in it"):
        runtime.choose_precision("bf16", cuda)


def test_generators_come_back_where_they_were() -> None:
    runtime.seed_everything(3, "rank", 1)
    state = runtime.random_state(CPU)
    first = random.random(), np.random.rand(), torch.rand(()).item()
    runtime.set_random_state(state, CPU)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == first
    runtime.seed_everything(3, "rank", 0)
    assert torch.rand(()).item() != first[2]


def test_the_first_signal_is_a_request_and_one_much_later_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A test run in the background of a script starts with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with runtime.stop_on_signals() as request:
        assert request.signal_name is None
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal_name == "SIGINT"
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passing the same Ctrl-C on
        assert request.signal_name == "SIGINT"
        monkeypatch.setattr(runtime, "SAME_REQUEST_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


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
    assert first["ranks"] == 1


@pytest.mark.gpu
def test_a_cuda_device_is_chosen_and_its_generator_comes_back() -> None:
    device = runtime.choose_device("auto")
    assert device.type == "cuda"
    state = runtime.random_state(device)
    first = torch.rand((), device=device).item()
    runtime.set_random_state(state, device)
    assert torch.rand((), device=device).item() == first
