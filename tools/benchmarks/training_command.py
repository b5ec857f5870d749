"""The command line: ``python tools/benchmark.py training``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mavil.commands.assemble import read_recipe
from mavil.structs import UserError
from tools.benchmarks.machine import describe_machine
from tools.benchmarks.processes import BYTES_PER_MIB
from tools.benchmarks.training import GROUPS, build_cases, default_ranks, report_of, run_cases

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "tiny" / "stage1.yaml"


def training(
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]", help="whose steps are measured")] = RECIPE,
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"beside the engine: {', '.join(GROUPS)}, or none; repeatable; default: all"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="times that everything is measured in turn")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="measured steps per round")] = 20,
    ranks: Annotated[int | None, typer.Option(min=1, help="processes; default: one per GPU, on a CPU 2")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, which ranks share; default: all")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="where checkpoints are written meanwhile; default: the temporary folder")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all readings there, for tools/scale.py")
    ] = None,
) -> None:
    """Steps of a recipe on made-up inputs, against a plain loop without the engine; and the cost of a checkpoint."""
    changes = changes or []
    groups = GROUPS if only is None else tuple(name for name in only if name != "none")
    if unknown := [name for name in groups if name not in GROUPS]:
        raise UserError(f"--only {unknown[0]} is not known: {', '.join(GROUPS)} or none")
    if folder is not None and not folder.is_dir():
        raise UserError(f"--folder {folder} is not a folder")
    console = Console()
    machine = describe_machine()
    count = ranks or default_ranks(read_recipe(recipe, changes))
    where = folder or Path(tempfile.gettempdir())
    cases = build_cases(recipe, changes, groups, count, steps, where, threads)
    with console.status("") as status:
        for what, found in run_cases(cases, rounds):
            status.update(what)
            results = found
    report = {"machine": machine, **report_of(recipe, changes, results)}
    print_training(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def print_training(report: dict[str, Any], console: Console) -> None:
    """The machine, a row per case, and the checkpoint."""
    for name, value in report["machine"].items():
        console.print(f"{name:>10}: {value}", highlight=False, soft_wrap=True)
    console.print(_cases(report))
    speed = f"{report['operations_per_second'] / 1e12:.3g} of {report['operations_per_clip'] / 1e12:.3g} TFLOP per clip"
    share = "" if report["peak_share"] is None else f", {100 * report['peak_share']:.1f} % of the card's bf16 peak"
    console.print(f"operations: {speed.replace(' of ', ' TFLOP/s, ')}{share}", highlight=False)
    lines = {
        "parameters": f"{report['parameters'] / 1e6:.1f} M trained",
        "checkpoint": f"{report['checkpoint_bytes'] / BYTES_PER_MIB:.1f} MiB, written in "
        f"{report['checkpoint_write_seconds']:.2f} s",
        "blocked": f"{report['checkpoint_blocked_seconds']:.3f} s per save (first: "
        f"{report['checkpoint_first_blocked_seconds']:.3f} s), {100 * report['checkpoint_share']:.3f} % of the time at one "
        f"save per {report['checkpoint_interval_seconds']:.0f} s",
        "while written": f"a step takes {report['checkpoint_step_seconds_while_writing'] / report['step_seconds']:.2f} "
        "times as long",
    }
    for name, line in lines.items():
        console.print(f"{name}: {line}", highlight=False, soft_wrap=True)


def _cases(report: dict[str, Any]) -> Table:
    cases = report["cases"]
    rounds = len(cases[0]["rounds"])
    table = Table(
        title=f"{report['recipe']} on {report['device']}, {cases[0]['facts']['clips_per_step']} clips per step, medians of "
        f"{rounds} rounds; percents are of the plain loop's time beside it"
    )
    table.add_column("", no_wrap=True)
    for name in ("ms per step", "clips/s", "% of plain", "range", "memory MiB", "of the engine's"):
        table.add_column(name, justify="right")
    for case in cases:
        if "problem" in case:
            table.add_row(case["name"], f"left out: {case['problem']}")
            continue
        table.add_row(
            case["name"],
            f"{1000 * case['step_seconds']:.1f}",
            f"{case['clips_per_second']:.1f}",
            f"{case['percent_of_plain']:.0f}",
            f"{case['percent_of_plain_lowest']:.0f}-{case['percent_of_plain_highest']:.0f}",
            f"{case['peak_bytes'] / BYTES_PER_MIB:.0f}",
            f"{case['peak_bytes'] / max(1, cases[0]['peak_bytes']):.2f}",
        )
    return table
