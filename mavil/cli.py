"""The table of verbs, and how a person's mistake is told: one line, no traceback, exit code 2."""

from __future__ import annotations

import sys

import typer

from mavil.commands import ablate, demo, evaluate, inspect, measure, pipeline, retrieve, shards, train
from mavil.commands.errors import EXIT_CODES, ignore_until_exit

app = typer.Typer(
    name="mavil",
    help="Masked audio-video learning: from media files to shards, pre-training, fine-tuning, retrieval and a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(shards.app, name="shards", help="Pack media files into shards, and check them.")
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("retrieve")(retrieve.retrieve)
app.command("inspect")(inspect.inspect)
app.command("pipeline")(pipeline.pipeline)
app.command("ablate")(ablate.ablate)
app.command("measure")(measure.measure)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line; see :mod:`mavil.commands.errors` for the exit codes."""
    try:
        app()
    except tuple(EXIT_CODES) as error:
        ignore_until_exit()
        typer.echo(f"mavil: {error}", err=True)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
