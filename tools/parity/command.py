"""The command line: ``python tools/check_parity.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mavil.structs import UserError
from tools.parity.checks import IN_FLOAT64, Checks, Row
from tools.parity.families import family_of
from tools.parity.fixture import Fixture

EXIT_DIFFERS, EXIT_UNUSABLE = 1, 2
IN_FLOAT32 = 1e-4
"""Relative tolerance of single precision: rounding alone stays a hundred times below it, a wrong constant does not."""
HEADINGS = ["output", "absolute", "limit", "relative", "tolerance", "verdict", ""]
LEFT = (0, 5, 6)

app = typer.Typer(name="check_parity", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def check_parity(
    fixtures: Annotated[list[Path], typer.Argument(help="files of weights, inputs and the originals' numbers")],
    in_float64: Annotated[
        bool, typer.Option("--float64", help="compute in float64 and compare with the float64 numbers alone")
    ] = False,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="of relative differences; default 1e-4, in float64 1e-10")
    ] = None,
) -> None:
    """Load the weights of each file into our models and compare every output with what the original project computed.

    Relative difference: the largest difference divided by the largest stored value of that output. Exit code 1: an output
    differs by more than the tolerance; 2: a file cannot be read, or holds a model that is not supported.
    """
    if tolerance is None:
        tolerance = IN_FLOAT64 if in_float64 else IN_FLOAT32
    codes = [_check_file(path, in_float64, tolerance) for path in fixtures]
    raise typer.Exit(max(codes))


def _check_file(path: Path, is_float64: bool, tolerance: float) -> int:
    try:
        fixture = Fixture(path)
        family = family_of(fixture)
        checks = Checks(fixture, is_float64, tolerance)
        family.check(checks)
        if not checks.rows:
            numbers = "float64 numbers" if is_float64 else "numbers"
            raise UserError(f"{path} ({family.name}): no {numbers} to compare with")
    except UserError as error:
        typer.echo(f"check_parity: {error}", err=True)
        return EXIT_UNUSABLE
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Sizes in the file that contradict each other end somewhere deep in torch.
        first = (str(error).splitlines() or [""])[0]
        typer.echo(f"check_parity: {path} cannot be computed with ({type(error).__name__}: {first})", err=True)
        return EXIT_UNUSABLE
    _show(path, family.name, checks)
    return 0 if all(row.passes for row in checks.rows) else EXIT_DIFFERS


def _show(path: Path, family: str, checks: Checks) -> None:
    """One line per output, however long: for people and for ``grep``."""
    typer.echo(f"{path.name}: {family}")
    lines = [HEADINGS, *([row.name, *_numbers(row), row.verdict, row.remark] for row in checks.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(n) if i in LEFT else cell.rjust(n) for i, (cell, n) in enumerate(zip(line, widths, strict=True))
        )
        typer.echo(("  " + "  ".join(cells)).rstrip())
    differing = [row.name for row in checks.rows if not row.passes]
    summary = f"{len(checks.rows)} outputs, " + (
        f"{len(differing)} differ: {', '.join(differing)}" if differing else "all agree"
    )
    for sentence in (*checks.notes, *_unchecked(checks), summary):
        typer.echo(f"  {sentence}")


def _numbers(row: Row) -> list[str]:
    if row.rule == "exact":
        return [f"{row.absolute:.1e}", "exact", "", ""]
    relative = [f"{row.relative:.1e}", f"{row.tolerance:.0e}" if row.rule == "relative" else ""]
    return [f"{row.absolute:.1e}", f"{row.limit:.1e}", *relative]


def _unchecked(checks: Checks) -> list[str]:
    """What of the file was not looked at."""
    names = checks.fixture.unasked()
    if checks.is_float64:
        names = [name for name in names if name.startswith("f64")]
    elif any(name.partition(".")[0] == "f64" for name in names):
        names = [*(name for name in names if name.partition(".")[0] != "f64"), "f64 (that is for --float64)"]
    return [f"not checked: {', '.join(names)}"] if names else []


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"check_parity: {error}", err=True)
        sys.exit(EXIT_UNUSABLE)
