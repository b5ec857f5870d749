"""What was measured, as people read it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tools.benchmarks.processes import BYTES_PER_MIB


def print_report(report: dict[str, Any], console: Console) -> None:
    """All tables that the report has the numbers for."""
    for name, value in report["machine"].items():
        console.print(f"{name:>10}: {value}", highlight=False, soft_wrap=True)
    console.print(_rates(report["rates"]))
    sizes = {name: f"{value / BYTES_PER_MIB:.3f} MiB" for name, value in report["bytes_per_clip"].items()}
    console.print(f"bytes per clip: {sizes['media']} of media, {sizes['read']} read from the shards", highlight=False)
    for key in ("waiting", "waiting_recipe"):
        if key in report:
            _print_waiting(report[key], console)
    if "memory" in report:
        console.print(_memory(report["memory"]))
    if "start_up" in report:
        console.print(_start_up(report["start_up"]))


def _rates(rates: list[dict[str, Any]]) -> Table:
    num_rounds = len(rates[0]["rounds"]["clips_per_second"])
    table = Table(title=f"medians of {num_rounds} rounds; percents are of the floor of the same round")
    table.add_column("", no_wrap=True)
    for name in ("clips/s by clock", "% of floor", "clips/s per core", "% of floor", "range"):
        table.add_column(name, justify="right")
    for rate in rates:
        table.add_row(
            rate["name"],
            f"{rate['clips_per_second']:.1f}",
            f"{rate['percent_of_floor_by_clock']:.0f}",
            f"{rate['clips_per_second_per_core']:.1f}",
            f"{rate['percent_of_floor']:.0f}",
            f"{rate['percent_of_floor_lowest']:.0f}-{rate['percent_of_floor_highest']:.0f}",
        )
    return table


def _print_waiting(waiting: dict[str, Any], console: Console) -> None:
    share, workers = 100 * waiting["share"], waiting["workers"]
    console.print(f"waiting for data: {share:.1f} % of steps of {waiting['step']}, {workers} workers", highlight=False)


def _memory(memory: dict[str, Any]) -> Table:
    table = Table(
        title=f"resident memory of each worker over {memory['samples']} samples; first: after a tenth of them"
    )
    for name in ("worker", "first MiB", "last MiB", "highest MiB", "drift %"):
        table.add_column(name, justify="right")
    for worker in memory["workers"]:
        numbers = (worker["first_mib"], worker["last_mib"], worker["highest_mib"])
        table.add_row(str(worker["worker"]), *(f"{mib:.1f}" for mib in numbers), f"{worker['drift_percent']:+.1f}")
    return table


def _start_up(start_up: dict[str, Any]) -> Table:
    table = Table(title=f"start with an index of {start_up['shards']} shards, {start_up['clips']} clips")
    table.add_column("from the name of the set")
    table.add_column("s", justify="right")
    for what, seconds in start_up["seconds"].items():
        table.add_row(what, f"{seconds:.2f}")
    return table
