"""Means, spreads and paired differences against numbers worked out by hand, and what a table says of missing runs."""

from __future__ import annotations

import math

import pytest

from mavil.evaluation.ablation import cells_of, groups_of, markdown_tables, measured_rows, summarise


def test_mean_and_spread_of_known_numbers() -> None:
    summary = summarise({0: 1.0, 1: 2.0, 2: 6.0})
    assert summary.mean == 3.0
    assert summary.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert summary.difference is None
    assert summarise({3: 5.0}).deviation is None


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by 10, variants by 1 and 3: unpaired, the standard error would be near 7."""
    summary = summarise({0: 11.0, 1: 23.0, 2: 99.0}, {1: 20.0, 0: 10.0, 5: -40.0})
    assert summary.difference == 2.0
    assert summary.difference_error == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert summary.num_pairs == 2
    alone = summarise({0: 11.0}, {0: 10.0})
    assert (alone.difference, alone.difference_error, alone.num_pairs) == (1.0, None, 1)
    assert summarise({0: 1.0}, {1: 1.0}).difference is None


@pytest.fixture
def rows() -> list:
    values = {
        "base": {
            0: {"probe/label/audio": 50.0, "cost/clips": 8000.0},
            1: {"probe/label/audio": 60.0, "cost/clips": 8000.0},
        },
        "new": {0: {"probe/label/audio": 49.0, "loss/total": 0.0001, "cost/clips": 8000.0}},
    }
    runs = {
        "base": {0: "finished", 1: "finished"},
        "new": {0: "finished", 1: "failed (exit code 1)"},
        "none": {0: "not finished"},
    }
    return measured_rows(runs, values, {"base": None, "new": "base", "none": "base"})


def test_rows_hold_what_there_is_and_say_what_is_missing(rows: list) -> None:
    base, new, none = rows
    assert base.measures["probe/label/audio"].mean == 55.0
    assert base.measures["probe/label/audio"].difference is None
    assert new.measures["probe/label/audio"].difference == -1.0
    assert new.measures["loss/total"].difference is None
    assert new.measures["cost/clips"].difference is None  # not for the model to decide
    assert none.measures == {}
    assert [row.missing for row in rows] == ["", "seed 1: failed (exit code 1)", "seed 0: not finished"]


def test_tables_by_group_with_every_row(rows: list) -> None:
    assert groups_of(rows) == {"probe": ["probe/label/audio"], "cost": ["cost/clips"], "loss": ["loss/total"]}
    assert cells_of(rows[0], ["probe/label/audio", "cost/clips"]) == [
        *("base", "2/2", "55.0 ± 7.1", "8,000 ± 0.0"),
    ]
    assert cells_of(rows[1], ["probe/label/audio", "loss/total"]) == ["new", "1/2", "49.0 (−1.0)", "0.0001"]
    text = markdown_tables(rows, "chain")
    lines = text.splitlines()
    assert "| probe: variant | runs | label/audio |" in lines
    assert "| none | 0/1 | – |" in lines
    assert "- new: seed 1: failed (exit code 1)" in lines
    assert "difference from the baseline, by seed" in lines[0]
    assert {line.count("|") for line in lines if line.startswith("|")} == {4}
