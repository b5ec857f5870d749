"""The command line: ``python tools/baseline.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mavil.commands.assemble import read_recipe
from mavil.config import Recipe
from mavil.structs import UserError
from tools.baselines.cnn import Scored, classes_of, train_cnn
from tools.baselines.log_mel_statistics import fit_statistics
from tools.baselines.results import markdown, read_counts, write_scored
from tools.baselines.splits import write_splits

app = typer.Typer(name="baseline", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe that classifies sound")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change; {split} is the split's name")
]
Splits = Annotated[str, typer.Option("--splits", help="names with commas between them")]
Seeds = Annotated[str, typer.Option("--seeds", help="whole numbers with commas between them")]
Out = Annotated[str, typer.Option("--out", help="folder; gets _SPLIT/seed_SEED added")]


@app.command()
def splits(
    clips: Annotated[Path, typer.Argument(help="folder with berklee, esc10 and fsdd, each with its manifest.csv")],
    out: Annotated[Path, typer.Argument(help="folder for the lists")],
) -> None:
    """Write the lists of the real clips: pre-training, training and test without a common clip."""
    for path in write_splits(clips, out):
        typer.echo(path)


@app.command()
def cnn(
    recipe: RecipeFile, out: Out, changes: Changes = None, split_names: Splits = "1,2,3,4", seeds: Seeds = "0,1,2"
) -> None:
    """Train a small CNN on log-mel from random weights, with the recipe's clips, augmentation, steps and schedule."""
    _each(train_cnn, "cnn", recipe, changes or [], (split_names, seeds), out)


@app.command()
def statistics(
    recipe: RecipeFile, out: Out, changes: Changes = None, split_names: Splits = "1,2,3,4", seeds: Seeds = "0,1,2"
) -> None:
    """Fit logistic regression on mean and deviation of every mel bin; every seed gives the same."""
    _each(fit_statistics, "statistics", recipe, changes or [], (split_names, seeds), out)


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="folder of SET_METHOD_SPLIT/seed_SEED: runs and baselines")],
    baseline: Annotated[str, typer.Option(help="the method that the others are compared with")] = "pretrained",
) -> None:
    """Print a table for every set: accuracy over the clips of all splits, and paired differences over seeds."""
    for name, counts in read_counts(folder).items():
        typer.echo(markdown(name, counts, baseline))


def _each(
    run: Callable[[Recipe], Scored], method: str, recipe: Path, changes: list[str], over: tuple[str, str], out: str
) -> None:
    names, seeds = ([one.strip() for one in text.split(",") if one.strip()] for text in over)
    for split in names:
        for seed in seeds:
            settings = [change.replace("{split}", split) for change in changes]
            read = read_recipe(recipe, [*settings, "task.weights=null", f"seed={seed}"])
            scored = run(read)
            facts = {"method": method, "recipe": str(recipe), "changes": settings, "seed": read.seed}
            write_scored(Path(f"{out}_{split}") / f"seed_{seed}", scored, classes_of(read).classes, facts)
            own = ", ".join(f"{key} {value:g}" for key, value in scored.facts.items())
            typer.echo(
                f"{out}_{split}/seed_{seed}: accuracy {100 * scored.accuracy:.1f} % of {len(scored.keys)} clips, "
                f"{scored.seconds:.1f} s of training, {own}"
            )


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"baseline: {error}", err=True)
        sys.exit(2)
