"""``mavil ablate FILE``: a recipe x variants or a grid x seeds, measured alike, as a table with differences from a baseline.

Every run is ``mavil train RECIPE ... --out OUT/VARIANT/seed_S --resume``, every measurement ``mavil measure``, each in its own
process. Started again, it does only what is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from mavil.atomic_files import write_text
from mavil.commands.finished import is_finished
from mavil.commands.measure import check_fields, stored_measurement
from mavil.commands.pipeline import leave_unless_good, print_plan, print_results, recipes_of, run_here
from mavil.commands.words import names_in
from mavil.evaluation.ablation import MeasuredRow, cells_of, groups_of, markdown_tables, measured_rows
from mavil.pipelines.ablation import Ablation, load_ablation
from mavil.pipelines.jobs import Job, jobs_of
from mavil.pipelines.reading import refuse_unknown
from mavil.pipelines.running import NOT_CHOSEN, Result
from mavil.structs import UserError

TABLE_FILES = "table.md", "table.json"
MEASURED = "measure "
"""How the name of the job begins that measures another one's run."""


def ablate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a YAML with variants or a grid, see configs/ablations")],
    jobs: Annotated[int, typer.Option(min=1, help="runs that may go on at the same time")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(metavar="VARIANT", help="train this variant alone; may be given several times")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="instead of the file's, e.g. 0,1")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="train nothing: measure what is finished, and the table")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="the folder of all runs instead of the file's")] = None,
    ranks_per_run: Annotated[
        int | None, typer.Option(min=1, help="processes of each training, started with torchrun: one per GPU")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the commands, run nothing")] = False,
) -> None:
    """Carry an ablation out here, and write its table; stopped half-way, the same command goes on."""
    if table and only:
        raise UserError("--table trains nothing: leave --only out, it is made of everything that is finished")
    ablation = load_ablation(file, out, _seeds(seeds))
    trainings = jobs_of(ablation.stages, ranks_per_run)
    recipes = recipes_of(trainings)
    for recipe in recipes.values():
        check_fields(recipe, ablation.measure)
    variants = [stage.name for stage in ablation.stages]
    for name in only or []:
        refuse_unknown(name, variants, f"{file}: no variant")
    chosen = set() if table else {job.name for job in trainings if job.stage in (only or variants)}
    measurements = [_measurement(job, ablation) for job in trainings]
    everything = [*trainings, *measurements]

    def has_finished(job: Job) -> bool:
        if job.is_training:
            return is_finished(job.run, recipes[job.name])
        return stored_measurement(job.run, ablation.measure) is not None

    runnable = chosen | {job.name for job in measurements}
    if dry_run:
        print_plan(everything, runnable, has_finished)
        return
    results = run_here(everything, runnable, has_finished, lambda job: None, jobs)
    rows = _measured(ablation, trainings, results)
    print_results(trainings, results, ablation.name)
    _print_tables(rows, ablation)
    _write_tables(rows, ablation)
    # Those that were not asked for may be missing; what was begun must have ended well.
    begun = {name: r for name, r in results.items() if name in chosen or r.state in ("failed", "stopped")}
    leave_unless_good(begun)


def _seeds(text: str | None) -> list[int] | None:
    try:
        seeds = [int(name) for name in names_in(text)]
    except ValueError:
        raise UserError(f"--seeds {text!r}: whole numbers with commas between them, e.g. 0,1,2") from None
    return list(dict.fromkeys(seeds)) or None


def _measurement(training: Job, ablation: Ablation) -> Job:
    arguments = ["measure", str(training.run), *ablation.measure.options()]
    command = [sys.executable, "-m", "mavil", *arguments]
    return Job(f"{MEASURED}{training.name}", training.stage, command, training.run, arguments, False, (training.name,))


def _measured(ablation: Ablation, trainings: Sequence[Job], results: dict[str, Result]) -> list[MeasuredRow]:
    jobs = {job.run: job.name for job in trainings}
    states: dict[str, dict[int, str]] = {}
    values: dict[str, dict[int, dict[str, float]]] = {}
    for row in ablation.rows:
        for seed, point in row.runs.items():
            training, measuring = (results[f"{prefix}{jobs[point.run]}"] for prefix in ("", MEASURED))
            state = "finished"
            if not training.is_good:
                state = _in_words(training)
            elif not measuring.is_good:
                state = f"trained, but its measurement {_in_words(measuring)}"
            states.setdefault(row.name, {})[seed] = state
            measures = stored_measurement(point.run, ablation.measure) if state == "finished" else None
            if measures is not None:
                values.setdefault(row.name, {})[seed] = measures
    return measured_rows(states, values, {row.name: row.baseline for row in ablation.rows})


def _in_words(result: Result) -> str:
    if result.reason == NOT_CHOSEN:
        return "not finished"
    return f"{result.state} ({result.reason})" if result.reason else result.state


def _print_tables(rows: Sequence[MeasuredRow], ablation: Ablation) -> None:
    console = Console()
    for group, measures in groups_of(rows).items():
        heads = [name.partition("/")[2] or name for name in measures]
        columns = [Column(head, overflow="fold") for head in ("variant", "runs", *heads)]
        table = Table(*columns, title=f"{ablation.name}: {group}", title_justify="left")
        for row in rows:
            table.add_row(*cells_of(row, measures))
        console.print(table)
    for row in rows:
        if row.missing:
            console.print(f"{row.name}: {row.missing}", markup=False, highlight=False, soft_wrap=True)


def _write_tables(rows: Sequence[MeasuredRow], ablation: Ablation) -> None:
    ablation.out.mkdir(parents=True, exist_ok=True)
    markdown, as_json = (ablation.out / name for name in TABLE_FILES)
    write_text(markdown, markdown_tables(rows, ablation.name))
    stored = {
        "name": ablation.name,
        "file": str(ablation.path),
        "seeds": ablation.seeds,
        "rows": [
            {
                "variant": row.name,
                "runs": {str(seed): state for seed, state in row.runs.items()},
                "baseline": next(one.baseline for one in ablation.rows if one.name == row.name),
                "measures": {name: summary.to_dict() for name, summary in row.measures.items()},
            }
            for row in rows
        ],
    }
    write_text(as_json, json.dumps(stored, indent=2) + "\n")
    typer.echo(f"written: {markdown} {as_json}")
