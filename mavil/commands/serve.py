"""``mavil serve INDEX``: a page on this machine to drop a sound or a film, and watch what comes back."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from mavil.commands.search import (
    CheckpointOption,
    DeviceOption,
    ExactOption,
    ModelOption,
    PickleOption,
    load_model,
)
from mavil.search.decoding import QueryDecoder
from mavil.search.index import SearchIndex
from mavil.search.queries import Searcher
from mavil.structs import UserError

CLOSING_SECONDS = 3
"""How long answers under way may take after Ctrl-C."""
MOST_CONNECTIONS = 256
KEPT_OPEN_SECONDS = 15
"""How long a connection without a request stays open."""
_DEFAULT_HOST = "127.0.0.1"


def serve(
    index: Annotated[Path, typer.Argument(help="embeddings that mavil embed has written")],
    port: Annotated[int, typer.Option(help="0: any that is free", min=0, max=65535)] = 8000,
    host: Annotated[
        str, typer.Option(help="address to listen on; another than this machine's own lets others in")
    ] = _DEFAULT_HOST,
    max_upload_mb: Annotated[float, typer.Option(help="of a query, megabytes", min=0.001, max=100_000)] = 64.0,
    max_seconds: Annotated[
        float, typer.Option(help="of a query that are looked at, from its beginning", min=0.1, max=3600)
    ] = 60.0,
    max_requests: Annotated[
        int, typer.Option(help="searches at once, waiting ones included; further ones are refused", min=1, max=1000)
    ] = 16,
    workers: Annotated[int, typer.Option(help="processes that decode queries", min=1, max=64)] = 2,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    allow_pickle: PickleOption = False,
    device: DeviceOption = "auto",
    exact: ExactOption = False,
) -> None:
    """Serve a search page until Ctrl-C; only programs of this machine can reach it."""
    try:
        import uvicorn  # noqa: F401 - used below, missed here

        from mavil.serve.app import ServeLimits, build_app
        from mavil.serve.guard import is_loopback, own_names
        from mavil.serve.uploads import UploadFolder
    except ImportError as error:
        raise UserError(
            f"mavil serve needs packages that are not there ({error}): pip install 'mavil[serve]'"
        ) from None
    opened, listening = SearchIndex(index, exact), _listen(host, port)
    limits = ServeLimits(round(max_upload_mb * 1e6), most_requests=max_requests, workers=workers)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listening)
        decoder = stack.enter_context(QueryDecoder(workers))
        decoder.warm_up()
        searcher = Searcher(opened, load_model(opened, model, checkpoint, device, allow_pickle), decoder, max_seconds)
        # Also closed by the server itself: a signal that ends it is passed on and may end the program there.
        uploads = stack.enter_context(contextlib.closing(UploadFolder()))
        app = build_app(searcher, limits, own_names(host), uploads)
        for line in [*opened.notices, opened.how]:
            typer.echo(line)
        if not is_loopback(host):
            typer.echo(
                f"warning: --host {host} lets other machines search and fetch the clips of this index, without a password",
                err=True,
            )
        typer.echo(f"{_address(host, listening)} is ready; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended what was under way, and passes the signal on
            _server(app).run(sockets=[listening])
        typer.echo("stopped", err=True)


def _server(app: Any) -> Any:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEPT_OPEN_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        server_header=False,
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; made before the model is loaded, which takes seconds.

    Raises:
        UserError: the port is taken or may not be used, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); choose another port") from None


def _address(host: str, listening: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"
