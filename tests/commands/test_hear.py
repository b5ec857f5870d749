from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mavil import hear
from tests.commands.conftest import Outcome


def test_a_tiny_model_keeps_to_the_rules(mavil: Callable[..., Outcome]) -> None:
    told = mavil("hear", "validate", "--device", "cpu")
    assert told.code == 0
    assert "0 errors, 0 warnings" in told.out


def test_a_long_hop_is_a_warning(mavil: Callable[..., Outcome]) -> None:
    told = mavil("hear", "validate", "?audio.patch=[16,16]", "--device", "cpu")
    assert told.code == 0
    assert "0 errors, 5 warnings" in told.out


def test_a_broken_rule_is_the_exit_code(mavil: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hear, "get_scene_embeddings", lambda audio, model: torch.zeros(len(audio), 1))
    told = mavil("hear", "validate", "--device", "cpu")
    assert told.code == 3
    assert "1 errors" in told.out


def test_a_checkpoint_that_is_not_there_is_the_persons_mistake(mavil: Callable[..., Outcome]) -> None:
    told = mavil("hear", "validate", "runs/nothing")
    assert told.code == 2
    assert "runs/nothing" in told.err
    assert told.err.count("\n") == 1
