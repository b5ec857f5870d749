"""``mavil pipeline FILE``: the stages of a pipeline on this machine, each the command a person would type."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from mavil.commands.assemble import read_recipe
from mavil.commands.errors import EXIT_STAGE_FAILED
from mavil.commands.finished import is_finished
from mavil.config import Recipe
from mavil.engine.process.stopping import Interrupted, stop_on_signals
from mavil.pipelines.jobs import Job, is_marked_finished, jobs_of, mark_finished, step_reached
from mavil.pipelines.pipeline import load_pipeline
from mavil.pipelines.reading import refuse_unknown
from mavil.pipelines.running import STOPPED_BEFORE, Jobs, Result, Running

_SHOW_SECONDS = 1.0


def pipeline(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a YAML with stages, e.g. slurm/pipelines/tiny.yaml")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="run this stage alone; may be given several times")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="stages that may run at the same time")] = 1,
    ranks_per_stage: Annotated[
        int | None, typer.Option(min=1, help="processes of each training, started with torchrun: one per GPU")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the folder of all run folders instead of the file's")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the commands, run nothing")] = False,
) -> None:
    """Run the stages of a pipeline here, those that are finished left out; stopped half-way, the same command goes on."""
    everything = jobs_of(load_pipeline(file, out), ranks_per_stage)
    recipes = recipes_of(everything)
    names = list(dict.fromkeys(job.stage for job in everything))
    for name in only or []:
        refuse_unknown(name, names, f"{file}: no stage")
    chosen = {job.name for job in everything if job.stage in (only or names)}
    by_name = {job.name: job for job in everything}

    def before(job: Job) -> list[Job]:
        return [by_name[name] for name in job.after]

    def has_finished(job: Job) -> bool:
        if job.is_training:
            return is_finished(job.run, recipes[job.name])
        return is_marked_finished(job, before(job))

    def finish(job: Job) -> None:
        if not job.is_training:
            mark_finished(job, before(job))

    if dry_run:
        print_plan(everything, chosen, has_finished)
        return
    results = run_here(everything, chosen, has_finished, finish, jobs)
    print_results(everything, results, f"{file}")
    leave_unless_good({name: results[name] for name in chosen})


def recipes_of(jobs: Sequence[Job]) -> dict[str, Recipe]:
    """The recipe of every training by the job's name: read before anything starts, so that mistakes are found now.

    Raises:
        UserError: one cannot be a recipe.
    """
    return {job.name: read_recipe(Path(job.arguments[0]), job.arguments[1:]) for job in jobs if job.is_training}


def run_here(
    jobs: Sequence[Job],
    chosen: set[str],
    has_finished: Callable[[Job], bool],
    finish: Callable[[Job], None],
    num_parallel: int,
) -> dict[str, Result]:
    """Run jobs with a line of progress; Ctrl-C and SIGTERM reach what runs, which saves and is waited for."""
    console = Console()
    shown = 0.0
    with stop_on_signals() as request, Status("", console=console) as status:

        def show(running: Sequence[Running], results: Mapping[str, Result]) -> None:
            nonlocal shown
            if console.is_terminal and time.monotonic() - shown > _SHOW_SECONDS:
                shown = time.monotonic()
                status.update(_progress(running, results, len(jobs)))

        return Jobs(
            jobs,
            chosen,
            has_finished,
            finish,
            num_parallel=num_parallel,
            is_stopping=lambda: request.is_made,
            show=show,
            tell=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        ).run()


def print_plan(jobs: Sequence[Job], chosen: set[str], has_finished: Callable[[Job], bool]) -> None:
    """The command of every job, in order, and which of them are finished."""
    for job in jobs:
        needs = f"; after {', '.join(job.after)}" if job.after else ""
        state = "finished" if has_finished(job) else "to do" if job.name in chosen else "not chosen"
        typer.echo(f"# {job.name}: {state}{needs}\n{shlex.join(job.command)}")


def print_results(jobs: Sequence[Job], results: Mapping[str, Result], title: str) -> None:
    """A table of what became of every job."""
    table = Table("stage", "state", "time", "folder", "why", title=title, title_justify="left")
    for job in jobs:
        result = results[job.name]
        seconds = int(result.seconds)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}" if seconds else "-"
        table.add_row(job.name, result.state, clock, str(job.run), result.reason)
    Console().print(table)


def leave_unless_good(results: Mapping[str, Result]) -> None:
    """End the program with the exit code that fits.

    Raises:
        Interrupted: something was stopped.
        typer.Exit: something failed, or was not started because of that.
    """
    if any(result.state == "stopped" or result.reason == STOPPED_BEFORE for result in results.values()):
        raise Interrupted("stopped; what was finished is kept, and the same command goes on")
    if not all(result.is_good for result in results.values()):
        raise typer.Exit(EXIT_STAGE_FAILED)


def _progress(running: Sequence[Running], results: Mapping[str, Result], total: int) -> str:
    def at(one: Running) -> str:
        step = step_reached(one.job.run) if one.job.is_training else None
        return one.job.name if step is None else f"{one.job.name} at step {step}"

    return f"{len(results)} of {total} ended; {', '.join(map(at, running)) or 'nothing'} running"
