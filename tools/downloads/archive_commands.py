"""The commands of the datasets that come as archives: one each, all with the same options."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mavil.structs import UserError
from tools.downloads.archives import Place, fetch_archives, fetch_small_file
from tools.downloads.catalog import ESC50, LIBRISPEECH, SPEECH_COMMANDS, VOXCELEB1, Dataset
from tools.downloads.transfer import DownloadError, TransferOptions

PASSWORD_VARIABLE = "MAVIL_DOWNLOAD_PASSWORD"

DATASETS = {"esc50": ESC50, "speech-commands": SPEECH_COMMANDS, "librispeech": LIBRISPEECH, "voxceleb1": VOXCELEB1}


def add_archive_commands(app: typer.Typer) -> None:
    """One command per dataset; they differ in what can be chosen only."""
    for name, dataset in DATASETS.items():
        app.command(name, help=dataset.about)(fetch_dataset)


def fetch_dataset(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[PART]...", help="parts of the dataset, or all")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to fetch to (default: data/NAME)")] = None,
    base_url: Annotated[
        str,
        typer.Option("--base-url", "--mirror", help="fetch from here instead: a folder's address, or one with {file}"),
    ] = "",
    user: Annotated[
        str,
        typer.Option(help=f"login name of the server; the password is asked for, or taken from {PASSWORD_VARIABLE}"),
    ] = "",
    retries: Annotated[
        int, typer.Option(min=0, help="tries in a row that bring nothing new before a file is given up")
    ] = TransferOptions.retries,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="seconds of silence after which a transfer counts as stalled")
    ] = TransferOptions.timeout_seconds,
    unpack: Annotated[bool, typer.Option("--unpack/--no-unpack", help="unpack the archives")] = True,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives/--remove-archives", help="keep the archives after unpacking")
    ] = True,
) -> None:
    """Fetch the archives of one dataset; the command's name says which."""
    dataset = DATASETS[context.info_name or ""]
    chosen = names or list(dataset.default)
    if not chosen:
        raise UserError(f"which part? name one or more of {', '.join(dataset.archives)}, or all")
    if dataset.login and not user and not base_url:
        raise UserError(dataset.login)
    place = Place(out or Path("data") / (context.info_name or ""), base_url, unpack, keep_archives)
    _fetch(dataset, chosen, place, TransferOptions(retries, timeout, headers=_login(user) if user else {}))


def _fetch(dataset: Dataset, choices: Iterable[str], place: Place, options: TransferOptions) -> None:
    names = list(dict.fromkeys(dataset.archives if "all" in choices else choices))
    unknown = [name for name in names if name not in dataset.archives]
    if unknown:
        raise UserError(f"{unknown[0]!r} is none of {', '.join(dataset.archives)}")
    console = Console()
    failures = fetch_archives([dataset.archives[name] for name in names], place, options, console)
    for file in dataset.files:
        # The lists are public even where the archives are not, so a password is not for them.
        open_options = TransferOptions(options.retries, options.timeout_seconds)
        try:
            fetch_small_file(file, place, open_options)
        except DownloadError as error:
            console.print(f"failed: {error}", highlight=False, soft_wrap=True, markup=False)
            failures.append(error)
    if failures:
        many = f"{len(failures)} of {len(names) + len(dataset.files)} files failed"
        raise DownloadError(f"{many}; run the same command to try again, what has come is kept")
    folder = dataset.archives[names[-1]].folder
    step = dataset.next_step.format(out=place.out, folder=folder)
    console.print(f"next: {step}", highlight=False, soft_wrap=True, markup=False)


def _login(user: str) -> dict[str, str]:
    password = os.environ.get(PASSWORD_VARIABLE) or typer.prompt(f"password of {user}", hide_input=True)
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")}
