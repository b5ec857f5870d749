"""The command line: ``python tools/benchmark.py model``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from mavil.structs import UserError
from tools.benchmarks.machine import describe_machine
from tools.benchmarks.model import RECIPES, build_contests, run_contests
from tools.benchmarks.plain_model import OURS, PEERS

_BYTES_PER_GB = 1e9
_FILE_WIDTH = 110
"""Of what goes to a file or another program, which would else be cut at 80 columns."""


def model(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]... [KEY=VALUE]...", help="default: the audio family and MAViL, paper scale"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="clips per pass; default: the public code's, else the recipe's")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="measured passes per round, after two that are not")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="times that everything is measured in turn")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help=f"beside ours: {', '.join(PEERS[1:])}, or none; repeatable; default: all")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="where it runs")] = "auto",
    public: Annotated[
        Path | None, typer.Option(help="also run the public codes cloned into this folder, see docs/audio_family.md")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all readings there too")] = None,
) -> None:
    """Forward and backward passes of recipes on made-up inputs: time and memory, beside plain code and the public codes."""
    named = [text for text in recipes or [] if "=" not in text]
    changes = [text for text in recipes or [] if "=" in text]
    peers = [OURS, *(PEERS[1:] if only is None else [name for name in only if name != "none"])]
    if unknown := [name for name in peers if name not in PEERS]:
        raise UserError(f"--only {unknown[0]} is not known: {', '.join(PEERS[1:])} or none")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    machine = describe_machine()
    contests = build_contests(
        [Path(text) for text in named] or RECIPES,
        changes,
        peers,
        batch=batch,
        steps=steps,
        threads=threads,
        device=device,
        public=public,
    )
    with console.status("") as status:
        for what in run_contests(contests, rounds):
            status.update(what)
            if not console.is_terminal:
                typer.echo(what, err=True)
    report = {"machine": machine, "models": [contest.summary() for contest in contests]}
    print_models(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def print_models(report: dict[str, Any], console: Console) -> None:
    """The machine, and of each recipe a row per peer and one of the public code."""
    for name, value in report["machine"].items():
        console.print(f"{name:>10}: {value}", highlight=False, soft_wrap=True)
    for found in report["models"]:
        console.print(_table(found))
        ours = found["peers"][OURS]
        console.print(
            f"ours: {ours['operations_per_second'] / 1e9:.3g} GFLOP/s, {100 * ours['share_of_product']:.0f} % of a matrix "
            f"product beside it ({ours['product_rate'] / 1e9:.3g}); memory: imports {ours['imports_bytes'] / _BYTES_PER_GB:.2f}, "
            f"with the model {ours['model_bytes'] / _BYTES_PER_GB:.2f}, at most {ours['peak_bytes'] / _BYTES_PER_GB:.2f} GB",
            highlight=False,
            soft_wrap=True,
        )
        for peer, problem in found["problems"].items():
            console.print(f"{peer} left out: {problem}", highlight=False, soft_wrap=True)


def _table(found: dict[str, Any]) -> Table:
    where = f"{found['device']}, {found['precision']}, {found['threads']} threads"
    table = Table(title=f"{found['recipe']}, {found['batch']} clips, forward and backward, {where}")
    table.add_column("", no_wrap=True)
    for heading in ("s", "x ours", "core s", "x ours", "clips/s", "peak GB", "x ours", "beyond imports", "x ours"):
        table.add_column(heading, justify="right")
    for peer, figures in found["peers"].items():
        table.add_row(peer, *_cells(figures))
    return table


def _cells(figures: dict[str, float]) -> list[str]:
    return [
        f"{figures['seconds']:.3f}",
        f"{figures.get('times_seconds', 1):.2f}",
        f"{figures['cpu_seconds']:.2f}",
        f"{figures.get('times_cpu_seconds', 1):.2f}",
        f"{figures['clips_per_second']:.2f}",
        f"{figures['peak_bytes'] / _BYTES_PER_GB:.2f}",
        f"{figures['times_peak_bytes']:.2f}",
        f"{figures['working_bytes'] / _BYTES_PER_GB:.2f}",
        f"{figures['times_working_bytes']:.2f}",
    ]
