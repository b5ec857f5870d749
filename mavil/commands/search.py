"""``mavil search INDEX QUERY...``: the clips that fit a sound or a film, with the times at which they do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Column, Table

from mavil.embedder.embedder import Embedder
from mavil.embedder.loading import load
from mavil.search.decoding import TRACKS, QueryDecoder
from mavil.search.index import Find, SearchIndex
from mavil.search.queries import Answered, NewFiles, Searcher, query_files
from mavil.structs import Modality, UserError

LOOK_SECONDS = 1.0
"""Between two looks into the folders of ``--watch``."""
MOST_TOP = 1000
ModelOption = Annotated[
    str | None, typer.Option(help="the model that made the index, where it has moved; default: as it was named then")
]
CheckpointOption = Annotated[
    str | None, typer.Option(help="of a run: newest, best or a step; default: as it was then, of --model the newest")
]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="read a public checkpoint that holds objects; none of them runs")
]
DeviceOption = Annotated[str, typer.Option(help="where queries are embedded: auto, cpu, cuda ...")]
ExactOption = Annotated[bool, typer.Option("--exact", help="leave alone what mavil index has added")]


def search(
    index: Annotated[Path, typer.Argument(help="embeddings that mavil embed has written")],
    queries: Annotated[list[Path], typer.Argument(help="sounds, films, and folders of them")],
    by: Annotated[
        Modality | None,
        typer.Option(help="what of a query is compared: its sound or its picture; default: what it has"),
    ] = None,
    find: Annotated[
        Find | None, typer.Option(help="what of the clips is compared with it; default: the other modality")
    ] = None,
    top: Annotated[int, typer.Option(help="clips to show", min=1, max=MOST_TOP)] = 10,
    max_seconds: Annotated[
        float, typer.Option(help="of a query that are looked at, from its beginning", min=0.1, max=3600)
    ] = 300.0,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    allow_pickle: PickleOption = False,
    device: DeviceOption = "auto",
    exact: ExactOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="one line of JSON per query")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="go on, and answer files as they appear in the folders, until Ctrl-C")
    ] = False,
) -> None:
    """Search with sounds and films; each clip comes once, with the window that fits best."""
    folders = [query for query in queries if query.is_dir()]
    if watch and not folders:
        raise UserError(f"--watch {queries[0]}: is no folder; name the folder in which queries will appear")
    files = query_files([query for query in queries if not (watch and query.is_dir())])
    opened, console = SearchIndex(index, exact), Console(stderr=as_json)
    with QueryDecoder() as decoder:
        decoder.warm_up()
        searcher = Searcher(opened, load_model(opened, model, checkpoint, device, allow_pickle), decoder, max_seconds)
        for line in [*opened.notices, opened.how]:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        asked = _Asked(searcher, by, find, top, as_json)
        failed = [path for path in files if not asked.answer(path)]
        if watch:
            asked.watch(folders)
    if failed:
        raise UserError(f"{len(failed)} of {len(files)} queries were not answered, {failed[0]} first; see above")


def load_model(
    index: SearchIndex, model: str | None, checkpoint: str | None, device: str, allow_pickle: bool
) -> Embedder[np.ndarray]:
    """The model that made an index, by default from where it was then; of ``model`` the newest checkpoint by default.

    Raises:
        UserError: it cannot be loaded.
    """
    source = model or index.model
    checkpoint = checkpoint or (index.checkpoint if model is None else "newest")
    try:
        return load(source, checkpoint, device, allow_pickle=allow_pickle, output="numpy")
    except UserError as error:
        if model is not None:
            raise
        raise UserError(
            f"the model that made {index.folder} cannot be loaded ({error}); say where it is with --model"
        ) from None


class _Asked:
    """What one call of the command asks of every query."""

    def __init__(self, searcher: Searcher, by: Modality | None, find: Find | None, top: int, as_json: bool) -> None:
        self._searcher, self._by, self._find, self._top, self._as_json = searcher, by, find, top, as_json
        self._console = Console()

    def answer(self, path: Path) -> bool:
        """Print the answer to one query, or why there is none; whether there is."""
        begin = time.monotonic()
        try:
            answered = self._searcher.answer(path, str(path), self._by, self._find, self._top)
        except UserError as error:
            if self._as_json:
                typer.echo(json.dumps({"query": str(path), "error": str(error)}))
            typer.echo(f"mavil: {error}", err=True)
            return False
        if self._as_json:
            seconds = round(time.monotonic() - begin, 3)
            typer.echo(json.dumps({**answered.tree(), "seconds": seconds, "search": self._searcher.index.how}))
        else:
            self._print(answered)
        return True

    def watch(self, folders: list[Path]) -> None:
        """Answer files as they appear, until Ctrl-C."""
        new = NewFiles(folders)
        try:
            while True:
                for path in new.look():
                    self.answer(path)
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)

    def _print(self, answered: Answered) -> None:
        for note in answered.notes:
            self._console.print(f"{answered.query}: {note}", highlight=False, markup=False, soft_wrap=True)
        for answer in answered.answers:
            found = "sound and picture" if answer.find == "any" else TRACKS[answer.find]
            title = f"{_plain(answered.query)} by its {TRACKS[answer.by]}: {found} of clips"
            wraps = {name: Column(name, overflow="fold") for name in ("clip", "where")}
            headings = ("", "cosine", wraps["clip"], "at", "fits the query at", wraps["where"])
            table = Table(*headings, title=title, title_justify="left")
            for match in answer.matches:
                at = _span(match.start_seconds, match.end_seconds)
                at += f" ({TRACKS[match.modality]})" if answer.find == "any" else ""
                of_query = _span(match.query_start_seconds, match.query_end_seconds)
                table.add_row(
                    str(match.rank), f"{match.score:.3f}", _plain(match.key), at, of_query, _plain(match.source)
                )
            self._console.print(table)


def _plain(text: str) -> str:
    """Text in which Rich sees no markup, and a terminal nothing but text."""
    from rich.markup import escape

    return escape("".join(char if char.isprintable() else "?" for char in text))


def _span(start: float, end: float) -> str:
    return f"{_clock(start)}-{_clock(end)}"


def _clock(seconds: float) -> str:
    """Minutes and seconds: 1:02.5."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"
