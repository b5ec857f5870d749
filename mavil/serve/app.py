"""The server: a page, a search by upload, and the media of the clips that were found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from mavil.search.index import Find
from mavil.search.queries import Answered, Searcher
from mavil.search.source_media import SourceMedia
from mavil.serve.guard import Guard
from mavil.serve.page import PAGE, POLICY
from mavil.serve.ranges import media_response
from mavil.serve.uploads import Refused, UploadFolder, drain
from mavil.structs import Modality, UserError

MOST_TOP = 100
_NAME_LENGTH = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeLimits:
    """What the server takes.

    Attributes:
        upload_bytes: of one query.
        upload_seconds: for it to arrive.
        most_requests: searches at once: those that arrive, wait and are worked on; further ones are answered with 503.
        workers: queries that are decoded at once; so many are held in memory decoded.
    """

    upload_bytes: int = 64_000_000
    upload_seconds: float = 60.0
    most_requests: int = 16
    workers: int = 2


class SearchService:
    """Searches by upload, some at once, the others in a queue that is not let grow.

    Args:
        searcher: answers queries.
        limits: see there.
        uploads: where queries lie while they are worked on.
    """

    def __init__(self, searcher: Searcher, limits: ServeLimits, uploads: UploadFolder) -> None:
        self.searcher, self.limits, self._uploads = searcher, limits, uploads
        self._requests = 0
        self._free = asyncio.Semaphore(limits.workers)
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="search")

    async def search(self, request: Request, name: str, by: Modality | None, find: Find | None, top: int) -> Answered:
        """The answer to the query in the body of a request.

        Raises:
            Refused: too many requests, or an upload that cannot be taken.
            UserError: a query that cannot be answered.
        """
        if self._requests >= self.limits.most_requests:
            await drain(request)
            raise Refused(503, f"{self._requests} searches are under way: try again in a moment")
        self._requests += 1
        try:
            limits = self.limits
            async with self._uploads.received(request, limits.upload_bytes, limits.upload_seconds) as path, self._free:
                if await request.is_disconnected():
                    raise Refused(400, "nobody waits for the answer any more")
                work = partial(self.searcher.answer, path, name, by, find, top)
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._requests -= 1

    def close(self) -> None:
        """End what is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def build_app(searcher: Searcher, limits: ServeLimits, names: list[str], uploads: UploadFolder) -> Guard:
    """The server as an ASGI application.

    Args:
        searcher: answers queries.
        limits: on uploads.
        names: host names by which it may be called, see :func:`mavil.serve.guard.own_names`.
        uploads: where queries lie while they are worked on; closed when the server ends.
    """
    state: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state["service"] = service = SearchService(searcher, limits, uploads)
        try:
            yield
        finally:
            service.close()
            uploads.close()

    # The pages of documentation that FastAPI makes load scripts from the network.
    app = FastAPI(title="mavil serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _add_search(app, state)
    _add_reading(app, searcher, limits)
    _add_errors(app)
    return Guard(app, names, POLICY)


def _add_search(app: FastAPI, state: dict[str, Any]) -> None:
    @app.post("/search")
    async def search(
        request: Request,
        by: Modality | None = None,
        find: Find | None = None,
        top: Annotated[int, Query(ge=1, le=MOST_TOP)] = 12,
        name: Annotated[str, Query(max_length=_NAME_LENGTH)] = "the file",
    ) -> JSONResponse:
        """The body is the file itself: nothing of a form has to be taken apart."""
        service: SearchService = state["service"]
        answered = await service.search(request, name, by, find, top)
        return JSONResponse(_with_pictures(answered, service.searcher))


def _with_pictures(answered: Answered, searcher: Searcher) -> dict[str, Any]:
    """An answer for the page, which must know of every clip whether it has a picture to show."""
    tree = answered.tree()
    for answer in tree["answers"]:
        for match in answer["matches"]:
            match["has_picture"] = searcher.index.clips[match["clip"]].has_video
    return tree


def _add_reading(app: FastAPI, searcher: Searcher, limits: ServeLimits) -> None:
    media = SourceMedia()

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE)

    @app.get("/about")
    async def about() -> JSONResponse:
        return JSONResponse(about_index(searcher, limits))

    @app.api_route("/media/{number}", methods=["GET", "HEAD"])
    async def clip(number: int, request: Request) -> Response:
        clips = searcher.index.clips
        if not 0 <= number < len(clips):
            raise HTTPException(404, f"the index has {len(clips)} clips, counted from 0")
        try:
            place = await run_in_threadpool(media.place, clips[number].source)
            return media_response(place, request.headers.get("range"), request.method == "GET")
        except UserError as error:
            raise HTTPException(404, str(error)) from None
        except OSError as error:
            raise HTTPException(404, f"{clips[number].source} cannot be read ({error.strerror})") from None


def about_index(searcher: Searcher, limits: ServeLimits) -> dict[str, Any]:
    """What the page says about the index and what it takes."""
    index = searcher.index
    return {
        "index": str(index.folder),
        "how": index.how,
        "model": index.model,
        "queries": list(searcher.model.modalities),
        "finds": list(index.modalities),
        "upload_bytes": limits.upload_bytes,
        "most_seconds": searcher.most_seconds,
        "num_clips": len(index.clips),
    }


def _add_errors(app: FastAPI) -> None:
    """Every failure is one sentence under ``error``."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "2"} if error.status == 503 else None
        return JSONResponse({"error": error.sentence}, status_code=error.status, headers=headers)

    @app.exception_handler(UserError)
    async def mistaken(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, status_code=422)

    @app.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return JSONResponse({"error": "the server made a mistake; its terminal says which"}, status_code=500)
