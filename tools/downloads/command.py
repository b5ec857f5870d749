"""The command line: ``python tools/download.py NAME``. What goes wrong is one line; the exit code says what kind it was.

2 is a mistake, 1 that something could not be fetched, 75 that somebody stopped it (Ctrl-C, or the TERM signal a cluster
sends before it ends a job): the same command goes on where it was.
"""

from __future__ import annotations

import signal
import sys

import typer

from mavil.commands.errors import EXIT_CODES
from mavil.engine.trainer import Interrupted
from tools.downloads import archive_commands, video_commands
from tools.downloads.transfer import DownloadError

EXIT_INCOMPLETE = 1

app = typer.Typer(
    name="download",
    help="Fetch a public dataset. Run the same command again to go on after any interruption.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
video_commands.add_video_commands(app)
archive_commands.add_archive_commands(app)


def _stop(number: int, frame: object) -> None:
    # Typer has its own idea of what a KeyboardInterrupt means, so it gets to see none.
    raise Interrupted("stopped; run the same command to go on")


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    codes: dict[type[Exception], int] = {**EXIT_CODES, DownloadError: EXIT_INCOMPLETE}
    try:
        app()
    except tuple(codes) as error:
        typer.echo(f"download: {error}", err=True)
        sys.exit(next(code for kind, code in codes.items() if isinstance(error, kind)))
