"""The command line: ``python tools/scale.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mavil.commands.assemble import read_recipe
from mavil.structs import UserError
from tools.scaling.inputs import Inputs, change_inputs
from tools.scaling.measured import read_measurements
from tools.scaling.question import Question
from tools.scaling.report import assumptions_of, tables_of
from tools.scaling.tables import put_into

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [ROOT / "configs" / "pretrain" / name for name in ("mavil_stage1.yaml", "mavil_stage2.yaml")]

app = typer.Typer(name="scale", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def scale(
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipe", help="stages to add up, in order; default: MAViL's two")
    ] = None,
    gpus: Annotated[str, typer.Option(help="numbers of GPUs, by commas")] = "8,64,256",
    measured: Annotated[list[Path] | None, typer.Option(help="JSON of tools/benchmark.py training; repeatable")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings of the recipes to change")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="an input and its value, loading.core_clips=50; repeatable")
    ] = None,
    card: Annotated[str, typer.Option(help="the card of the tables that show only one")] = "A100",
    networks: Annotated[str, typer.Option(help="speeds between nodes to compare, Gbit/s")] = "25,100,400,1600",
    price: Annotated[float | None, typer.Option(min=0, help="of a GPU-hour, in your currency: adds a column")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the tables as docs/clusters.md has them")] = False,
    into: Annotated[Path | None, typer.Option(help="replace the marked tables of this document")] = None,
) -> None:
    """Time, cost, traffic and limits of pre-training on AudioSet-2M, from measured step times or stated assumptions."""
    question = build_question(recipes or RECIPES, settings, gpus, measured, changes, card, networks, price)
    tables = tables_of(question)
    if into is not None:
        into.write_text(put_into(into.read_text(encoding="utf-8"), tables), encoding="utf-8")
        return
    console = Console()
    for table in tables:
        if markdown:
            typer.echo(f"{table.title}\n\n{table.to_markdown()}\n")
        else:
            console.print(table.to_rich())
    for sentence in assumptions_of(question):
        typer.echo(sentence)


def build_question(
    recipes: list[Path],
    settings: list[str] | None = None,
    gpus: str = "8,64,256",
    measured: list[Path] | None = None,
    changes: list[str] | None = None,
    card: str = "A100",
    networks: str = "25,100,400,1600",
    price: float | None = None,
) -> Question:
    """What the options ask for.

    Raises:
        UserError: a recipe, file, input, card or number that cannot be used.
    """
    inputs = change_inputs(Inputs(), changes or [])
    if card not in inputs.cards:
        raise UserError(f"--card {card}: not known; there are {', '.join(inputs.cards)}")
    numbers = [int(number) for number in _numbers("--gpus", gpus)]
    read = [read_recipe(recipe, settings or []) for recipe in recipes]
    names = [recipe.name for recipe in read]
    measurements = [m for path in measured or [] for m in read_measurements(path, names, list(inputs.cards))]
    question = Question(
        recipes=tuple(read),
        inputs=inputs,
        gpus=tuple(numbers),
        detail=card,
        networks=tuple(_numbers("--networks", networks)),
        measurements=tuple(measurements),
        price=price,
    )
    for ranks in question.gpus:
        if question.global_batch % ranks:
            raise UserError(
                f"--gpus {ranks}: the global batch of {question.global_batch} clips cannot be divided by it; "
                "take another number, or --set compute.global_batch"
            )
    return question


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: write numbers with commas between, e.g. 8,64") from None
    if min(numbers) <= 0 or (option == "--gpus" and any(number % 1 for number in numbers)):
        raise UserError(f"{option} {text}: must be {'whole numbers' if option == '--gpus' else 'numbers'} above 0")
    return numbers


def main() -> None:
    """Run the command line."""
    try:
        app()
    except UserError as error:
        typer.echo(f"scale: {error}", err=True)
        sys.exit(2)
