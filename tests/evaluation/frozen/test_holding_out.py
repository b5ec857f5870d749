"""Validation clips: of every class, groups whole, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mavil.evaluation.frozen.holding_out import hold_out
from mavil.structs import UserError


def one_hot(labels: list[int], classes: int) -> torch.Tensor:
    return torch.eye(classes, dtype=torch.bool)[labels]


def test_every_class_gives_its_share_and_keeps_a_clip() -> None:
    labels = [0] * 40 + [1] * 20 + [2] * 2 + [3]
    kept, held = hold_out(one_hot(labels, 4), None, "abcd", seed=0)
    assert sorted([*kept, *held]) == list(range(63))
    assert np.bincount(np.array(labels)[held], minlength=4).tolist() == [4, 2, 1, 0]
    again, other = (hold_out(one_hot(labels, 4), None, "abcd", seed)[1] for seed in (0, 1))
    assert held.tolist() == again.tolist() != other.tolist()


def test_a_clip_with_several_labels_counts_as_of_the_rarest() -> None:
    targets = one_hot([0] * 20 + [1] * 4, 2)
    targets[20:, 0] = True
    _, held = hold_out(targets, None, "ab", seed=0)
    assert sum(row >= 20 for row in held) == 1
    assert len(held) == 3


def test_groups_are_never_split() -> None:
    generator = np.random.default_rng(0)
    groups = [f"speaker{number}" for number in generator.integers(0, 12, 240)]
    labels = generator.integers(0, 3, 240).tolist()
    kept, held = hold_out(one_hot(labels, 3), groups, "abc", seed=0)
    ours, theirs = ({groups[row] for row in rows} for rows in (kept, held))
    assert not ours & theirs
    assert 0.02 < len(held) / 240 < 0.2
    assert sorted([*kept, *held]) == list(range(240))


def test_few_groups_and_few_clips_are_held_out_too() -> None:
    groups = ["one", "two", "one", "two"]
    kept, held = hold_out(one_hot([0, 0, 1, 1], 2), groups, "ab", seed=0)
    assert sorted([kept.tolist(), held.tolist()]) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("labels", "groups", "told"),
    [
        ([0, 1, 2], None, "no class has two training clips"),
        ([0, 0, 1, 1], ["one"] * 4, "all 4 training clips are of one group ('one')"),
        ([0, 0, 1, 1], ["one", "one", "two", "two"], "leaves no training clip of class 'a'"),
    ],
)
def test_what_cannot_be_held_out_is_told(labels: list[int], groups: list[str] | None, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("(", r"\(").replace(")", r"\)")):
        hold_out(one_hot(labels, 3), groups, "abc", seed=0)
