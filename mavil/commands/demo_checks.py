"""What the demo must reach on the synthetic clips, and its last lines on the console."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TIMES_CHANCE = 10
"""Recall at 1 after stage 2, in both directions, must be at least so many times chance."""
STANDARD_ERRORS = 2.0
"""A fine-tune from pre-trained weights must beat the one from random weights by more than so many standard errors."""


@dataclass(frozen=True)
class Check:
    """One thing that had to come true; ``value`` and ``threshold`` in percent."""

    name: str
    value: float
    threshold: float
    passed: bool


def judge(
    retrieval: dict[str, dict[str, dict[str, dict[str, Any]]]], finetunes: dict[str, dict[str, Any]]
) -> list[Check]:
    """The demo's checks: retrieval after the last stage, and the gain of every fine-tune."""
    checks = []
    for way, numbers in list(retrieval.values())[-1]["whole gallery"].items():
        value, threshold = numbers["recall_at_1_percent"], TIMES_CHANCE * numbers["chance_at_1_percent"]
        name = f"R@1 {way.replace('_', ' ')} at least {TIMES_CHANCE} x chance"
        checks.append(Check(name, value, threshold, value >= threshold))
    for which, result in finetunes.items():
        gain = 100 * (result["pretrained"] - result["random"])
        threshold = 100 * STANDARD_ERRORS * standard_error(result)
        name = f"fine-tuning on {which}: gain over random weights above {STANDARD_ERRORS:g} standard errors"
        checks.append(Check(name, gain, threshold, gain > threshold))
    return checks


def standard_error(result: dict[str, Any]) -> float:
    """Of the difference of the two accuracies, each a share of ``num_clips`` independent clips.

    A share of 0 or 1 is taken as half a clip away from it, so that the error never vanishes.
    """
    half = 0.5 / result["num_clips"]
    shares = [min(max(result[start], half), 1 - half) for start in ("pretrained", "random")]
    return math.sqrt(sum(p * (1 - p) / result["num_clips"] for p in shares))


def print_results(
    console: Console,
    out: Path,
    retrieval: dict[str, dict[str, dict[str, dict[str, Any]]]],
    finetunes: dict[str, dict[str, Any]],
    checks: list[Check],
) -> None:
    """The last lines of the demo."""
    console.print(_retrieval_table(retrieval))
    if finetunes:
        table = Table("fine-tuning on", "pre-trained", "random weights", "chance", title="accuracy, percent")
        for which, result in finetunes.items():
            values = [f"{100 * result[name]:.1f}" for name in ("pretrained", "random", "chance")]
            table.add_row(which, *values)
        console.print(table)
    for check in checks:
        mark = "[green]passed[/]" if check.passed else "[red]FAILED[/]"
        console.print(
            f"{mark}  {check.name}: {check.value:.1f} %, needed {check.threshold:.1f} %",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"summary: {out / 'summary.json'}", highlight=False)
    console.print(f"report:  {out / 'report.html'} (open it in a browser)", highlight=False)
    failed = sum(not check.passed for check in checks)
    if failed:
        console.print(f"[red]{failed} of {len(checks)} checks failed[/]: this is not the result it should be")


def _retrieval_table(retrieval: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> Table:
    table = Table("after", "gallery", "direction", "R@1", "R@5", "R@10", "chance", title="retrieval, percent")
    for stage, galleries in retrieval.items():
        for gallery, ways in galleries.items():
            for way, numbers in ways.items():
                recalls = [f"{numbers[f'recall_at_{k}_percent']:.1f}" for k in (1, 5, 10)]
                chances = " / ".join(f"{numbers[f'chance_at_{k}_percent']:.3g}" for k in (1, 5, 10))
                searched = f"{gallery.replace('whole gallery', 'all')}, {numbers['gallery_size']:.0f}"
                table.add_row(stage, searched, way.replace("_to_", " → "), *recalls, chances)
    return table
