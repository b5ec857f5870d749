"""``mavil hear evaluate CHECKPOINT``: the HEAR benchmark's shallow evaluation of a model's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mavil.atomic_files import unwritable
from mavil.commands.errors import EXIT_STAGE_FAILED
from mavil.engine.process.runtime import choose_device
from mavil.engine.run.lock import holding
from mavil.evaluation.hear.embeddings import embed_task, same_probe
from mavil.evaluation.hear.folds import Options, score_task
from mavil.evaluation.hear.grid import NUM_POINTS
from mavil.evaluation.hear.models import Embedder, load_embedder
from mavil.evaluation.hear.results import HEADINGS, NUM_OWN, Row, cells_of, failed_row, markdown, row_of
from mavil.evaluation.hear.stored import read_json, write_json, write_text
from mavil.evaluation.hear.tasks import HearTask, find_tasks, read_task, sounds_of
from mavil.structs import UserError

IDENTITY_FILE, RESULT_FILE, TABLE_FILE = "identity.json", "results.json", "results.md"


class Grid(str, Enum):
    """Names of ``mavil.evaluation.hear.grid.GRIDS``."""

    default = "default"
    fast = "fast"


class Device(str, Enum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="what the module's load_model takes: a run folder or a checkpoint")],
    tasks: Annotated[Path, typer.Option(help="folder with HEAR's task folders, or one of them")],
    out: Annotated[Path, typer.Option(help="folder for embeddings and results; the same again goes on where it ended")],
    task: Annotated[
        list[str] | None, typer.Option(help="only this task (folder or task name); can be repeated")
    ] = None,
    grid: Annotated[
        Grid, typer.Option(help="grid of the predictor: heareval's default, or its fast one")
    ] = Grid.default,
    grid_points: Annotated[int, typer.Option(min=1, help="points drawn from the grid")] = NUM_POINTS,
    seeds: Annotated[int, typer.Option(min=1, help="repetitions, with the seeds 42, 43, ...")] = 1,
    shuffle: Annotated[
        bool, typer.Option(help="new order of the training rows in every epoch; the leaderboard's numbers have none")
    ] = True,
    device: Annotated[Device, typer.Option(help="for embeddings and predictors")] = Device.auto,
    module: Annotated[str, typer.Option(help="any importable module with HEAR's functions")] = "mavil.hear",
) -> None:
    """Score a model's embeddings on HEAR tasks as heareval does; writes OUT/results.json and OUT/results.md."""
    console = Console()
    folders = find_tasks(tasks, task or ())
    options = Options(grid.value, grid_points, shuffle, device=choose_device(device.value))
    embedder = load_embedder(module, checkpoint, options.device)
    # Whatever is wrong with a folder is said now and not after hours.
    read = read_all(folders, embedder.sample_rate_hz)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from None
    with holding(out):
        claim(out, embedder, checkpoint)
        rows = evaluate_tasks(read, embedder, out, options, seeds, console)
        write_results(out, rows, checkpoint, options, seeds)
    print_table(console, rows)
    if any(row.error for row in rows):
        raise typer.Exit(EXIT_STAGE_FAILED)


def read_all(folders: Sequence[Path], sample_rate_hz: int) -> list[HearTask]:
    """Read and check all task folders.

    Raises:
        UserError: some are damaged; each is named with its first fault.
    """
    read, faults = [], []
    for folder in folders:
        try:
            found = read_task(folder)
            sounds_of(found, sample_rate_hz)
            read.append(found)
        except UserError as error:
            faults.append(str(error))
    if faults:
        more = f"; and {len(faults) - 1} more: {'; '.join(faults[1:])}" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}. Mend what is damaged, or name the tasks to evaluate with --task")
    return read


def claim(out: Path, embedder: Embedder, checkpoint: str) -> None:
    """Write down whose results a folder holds.

    Raises:
        UserError: those of another model.
    """
    identity, probe = embedder.identity(), embedder.probe()
    before = read_json(out / IDENTITY_FILE)
    if before is None:
        write_json(out / IDENTITY_FILE, {"checkpoint": checkpoint, "identity": identity, "probe": probe})
    elif before["identity"] != identity or not same_probe(before["probe"], probe):
        raise UserError(
            f"{out} holds results of another model ({before['checkpoint']}): choose another folder with --out"
        )


def evaluate_tasks(
    tasks: Sequence[HearTask], embedder: Embedder, out: Path, options: Options, seeds: int, console: Console
) -> list[Row]:
    """One row per task; a task that fails leaves a row with its error, and the others go on."""
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for number, task in enumerate(tasks, start=1):
            bar = bars.add_task(task.key)

            def show(
                what: str, done: int, total: int, bar: Any = bar, name: str = f"{task.key} {number}/{len(tasks)}"
            ) -> None:
                bars.update(bar, description=f"{name}: {what}", completed=done, total=total)

            try:
                splits = embed_task(task, embedder, out / task.key / "embeddings", show)
                repeated = [replace(options, seed=options.seed + i) for i in range(seeds)]
                results = [score_task(task, splits, out / task.key, one, show) for one in repeated]
                rows.append(row_of(task.key, task.name, task.mode, results))
            except (UserError, OSError, RuntimeError) as error:
                # Of the model or the machine: the other tasks may well come to their end, and this one goes on next time.
                console.print(f"{task.key}: {error}", style="red", markup=False)
                rows.append(
                    failed_row(task.key, task.metrics[0], str(error).splitlines()[0] if str(error) else repr(error))
                )
    return rows


def write_results(out: Path, rows: Sequence[Row], checkpoint: str, options: Options, seeds: int) -> None:
    """``OUT/results.json`` and ``OUT/results.md``."""
    settings = {"grid": options.grid, "grid_points": options.num_points, "shuffle": options.shuffles, "seeds": seeds}
    rows_by_task = {row.task: asdict(row) for row in rows}
    write_json(out / RESULT_FILE, {"checkpoint": checkpoint, "settings": settings, "tasks": rows_by_task})
    about = [f"Model: `{checkpoint}`. " + ", ".join(f"{name}: {value}" for name, value in settings.items()) + "."]
    write_text(out / TABLE_FILE, markdown(rows, about))


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """To the console: as the document, with the other systems' scores in one column that folds."""
    table = Table(title="HEAR, first metric of each task")
    for heading in (*HEADINGS[:NUM_OWN], "others"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        others = ", ".join(f"{system} {score:.3f}" for system, score in row.anchors.items())
        table.add_row(*cells_of(row)[:NUM_OWN], others)
    console.print(table, markup=False)
