from __future__ import annotations

import pytest
import torch

from mavil.evaluation.audit import TOLERANCE, Logits, Reference, check_movement, check_state

CLIPS = [("a", 1), ("b", 2), ("b", 3), ("c", 4)]
"""Clip ``b`` has two windows."""


def logits(scale: float = 1.0, **moved: float) -> Logits:
    """Of each row; ``moved`` by the clip's key."""
    values = scale * torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.25, 1.0], [-3.0, 0.0]])
    return [(row, {"audio": values[i] + moved.get(row[0], 0.0)}) for i, row in enumerate(CLIPS)]


def test_logits_may_not_move() -> None:
    reference = Reference.of(logits())
    assert reference.tolerance == TOLERANCE
    assert reference.why == ""
    same = check_movement("order", reference, list(reversed(logits())), "hint")
    assert (same.passed, same.movement, same.detail) == (True, 0.0, "")
    assert check_movement("order", reference, logits(c=0.9e-4)).passed
    found = check_movement("order", reference, logits(b=1e-5, c=1.2e-4), "hint")
    assert (found.passed, found.clip, found.detail) == (False, "c", "hint")
    assert found.movement == pytest.approx(1.2e-4, rel=1e-2)
    broken = check_movement("order", reference, logits(a=float("nan"), c=1.0))
    assert (broken.passed, broken.clip) == (False, "a")


def test_every_clip_comes_exactly_once() -> None:
    reference = Reference.of(logits())
    missing = check_movement("ranks", reference, logits()[:-1])
    assert (missing.passed, missing.detail) == (False, "1 of 4 clips are missing, first 'c'")
    twice = check_movement("ranks", reference, [*logits(), logits()[1]])
    assert (twice.passed, twice.detail) == (False, "1 clips came that should not have, or twice, first 'b'")
    assert check_movement("twice", reference, [*logits(), *logits()], is_whole=False).passed
    assert not check_movement("twice", reference, [*logits(), *logits(c=1.0)], is_whole=False).passed
    other_head = [(row, {"video": values["audio"]}) for row, values in logits()]
    assert check_movement("heads", reference, other_head).detail == "no logits from audio"


def test_logits_that_hardly_differ_are_judged_by_their_differences() -> None:
    """A head with weights of 1e-5 moves by less than 1e-4 whatever is wrong."""
    reference = Reference.of(logits(scale=1e-4))
    assert reference.tolerance == pytest.approx(0.001 * reference.spread)
    assert reference.tolerance < 3e-7
    assert "clips differ by" in reference.why
    assert not check_movement("order", reference, logits(scale=1e-4, c=1e-6)).passed
    # But not below what rounding does.
    large = [(row, {"audio": 100 + values["audio"]}) for row, values in logits(scale=1e-5)]
    assert Reference.of(large).tolerance == TOLERANCE
    assert Reference.of([(("a", 1), {"audio": torch.full((2,), 3.0)})]).tolerance == pytest.approx(6e-6)


def test_the_model_must_be_left_alone() -> None:
    assert check_state([], []).passed
    found = check_state(["", "head"], ["head.norm.running_mean"])
    assert found.passed is False
    assert found.detail == (
        "2 modules are in training mode, first 'the model'; evaluation has changed 1 tensors of the model, first "
        "'head.norm.running_mean'"
    )
