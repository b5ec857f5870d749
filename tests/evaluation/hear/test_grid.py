"""The grid and the order in which it is drawn."""

from __future__ import annotations

import pytest

from mavil.evaluation.hear.grid import NUM_POINTS, Setting, draw_settings
from mavil.structs import UserError

FIRST_OF_HEAREVAL = [
    Setting(1, 1e-4, "xavier_normal", 3, 500),
    Setting(2, 1e-3, "xavier_uniform", 3, 500),
    Setting(1, 1e-3, "xavier_normal", 3, 500),
]


def test_the_benchmark_draws_these_points() -> None:
    """The first three of heareval 2021.1.3 with its seed, and the first of its changed grid for DCASE."""
    drawn = draw_settings("default", "esc50", {}, NUM_POINTS, seed=42)
    assert drawn[:3] == FIRST_OF_HEAREVAL
    assert len(set(drawn)) == len(drawn) == 8
    assert {setting.validate_every for setting in draw_settings("default", "dcase2016_task2", {}, 16, 42)} == {10}
    assert len(draw_settings("default", "esc50", {}, 100, 42)) == 16
    assert len(draw_settings("fast", "esc50", {}, 100, 42)) == 64


def test_another_seed_is_another_order() -> None:
    assert draw_settings("default", "esc50", {}, 16, 43) != draw_settings("default", "esc50", {}, 16, 42)


def test_a_task_may_change_the_grid_in_what_it_has() -> None:
    assert {setting.max_epochs for setting in draw_settings("default", "x", {"max_epochs": [7]}, 16, 42)} == {7}
    with pytest.raises(UserError, match="task x: task_specific_param_grid has 'momentum'"):
        draw_settings("default", "x", {"momentum": [0.9]}, 8, 42)
