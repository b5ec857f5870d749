"""``mavil hear``: the HEAR benchmark's rules and its evaluation."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mavil import hear
from mavil.commands import hear_evaluate
from mavil.commands.errors import EXIT_CHECKS_FAILED
from mavil.features.hear_rules import check_module

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def table() -> None:
    """Check a model against the HEAR benchmark's rules, and evaluate it on the benchmark's tasks."""


app.command("evaluate")(hear_evaluate.evaluate)


@app.command("validate")
def validate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="run folder or checkpoint file, options behind a '?'; default: a tiny model, random weights"
        ),
    ] = "",
    device: Annotated[str | None, typer.Option(help="e.g. cpu; default: the GPU where there is one")] = None,
) -> None:
    """Check that a model keeps to the rules of HEAR's interface: all that hear-validator 2021.0.6 looks at.

    Exit code 0: it does, perhaps with warnings; 3: it does not.
    """
    # Whether the checkpoint can be used at all is no question of the rules, and is told as everywhere.
    hear.load_model(checkpoint)
    findings = check_module(hear, checkpoint, device)
    table = Table("", "rule", "found", title=f"HEAR's rules: {checkpoint or 'a tiny model'}", title_justify="left")
    for finding in findings:
        table.add_row(finding.kind, finding.rule, finding.text)
    console = Console()
    console.print(table, markup=False)
    counts = {kind: sum(finding.kind == kind for finding in findings) for kind in ("error", "warning")}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings", highlight=False)
    if counts["error"]:
        raise typer.Exit(EXIT_CHECKS_FAILED)
