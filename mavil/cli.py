"""The table of verbs, and how a person's mistake is told: one line, no traceback, exit code 2."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

import typer
import typer.core
import typer.main

from mavil.commands.errors import EXIT_CODES, ignore_until_exit

VERBS = {
    "shards": "shards.app",
    "train": "train.train",
    "evaluate": "evaluate.evaluate",
    "compare": "compare.compare",
    "embed": "embed.embed",
    "retrieve": "retrieve.retrieve",
    "index": "index.index",
    "search": "search.search",
    "serve": "serve.serve",
    "probe": "probe.probe",
    "inspect": "inspect.inspect",
    "pipeline": "pipeline.pipeline",
    "ablate": "ablate.ablate",
    "measure": "measure.measure",
    "convert": "convert.convert",
    "export": "export.export",
    "hear": "hear.app",
    "pictures": "pictures.pictures",
    "demo": "demo.demo",
}
"""What people type, and where it is below ``mavil.commands``: a function, or a table of verbs of its own."""


class _Commands(MutableMapping[str, Any]):
    """The verbs as Typer's commands, each imported when it is asked for: all of them together take seconds."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, verb: str) -> Any:
        if verb not in self._loaded:
            module, _, name = VERBS[verb].rpartition(".")
            self[verb] = _command(verb, getattr(importlib.import_module(f"mavil.commands.{module}"), name))
        return self._loaded[verb]

    def __setitem__(self, verb: str, command: Any) -> None:
        self._loaded[verb] = command

    def __delitem__(self, verb: str) -> None:
        del self._loaded[verb]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Table(typer.core.TyperGroup):
    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.commands = _Commands()


def _command(verb: str, found: Any) -> Any:
    if isinstance(found, typer.Typer):
        table = found
    else:
        table = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        table.command(verb)(found)
    command = typer.main.get_command(table)
    command.name = verb
    return command


app = typer.Typer(name="mavil", cls=_Table, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def mavil() -> None:
    """Masked audio-video learning: from media files to shards, pre-training, fine-tuning, retrieval and a report."""


def main() -> None:
    """Run the command line; see :mod:`mavil.commands.errors` for the exit codes."""
    try:
        app()
    except tuple(EXIT_CODES) as error:
        ignore_until_exit()
        typer.echo(f"mavil: {error}", err=True)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
