"""The commands of the datasets that are lists of YouTube clips: AudioSet and VGGSound, both with the same options."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mavil.engine.trainer import Interrupted
from mavil.structs import UserError
from tools.downloads.archives import Place, fetch_small_file
from tools.downloads.catalog import VIDEO_LISTS
from tools.downloads.causes import PERMANENT
from tools.downloads.clips import ClipRun, Outcome, RunOptions, pending_segments
from tools.downloads.journal import Attempt, Journal
from tools.downloads.segments import Segment, choose_segments, part_of, read_segments
from tools.downloads.transfer import DownloadError, TransferOptions, make_folder
from tools.downloads.youtube import YOUTUBE, SiteOptions, best_cutting, fetch_with_yt_dlp, file_name, require_yt_dlp

LOG_EVERY_SECONDS = 60.0
"""Where the output is a file, a line of counts this often instead of a bar."""


def add_video_commands(app: typer.Typer) -> None:
    """``audioset`` and ``vggsound``."""
    app.command("audioset", help="AudioSet: the listed 10 s of YouTube videos, with yt-dlp.")(fetch_videos)
    app.command("vggsound", help="VGGSound: the listed 10 s of YouTube videos, with yt-dlp.")(fetch_videos)


def fetch_videos(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="LIST", help="the official CSV, or to fetch it: balanced, eval, unbalanced (VGGSound: all)"
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="folder of the clips and the journal (default: data/NAME)")] = None,
    cookies: Annotated[Path | None, typer.Option(help="cookies.txt of a signed-in browser")] = None,
    rate_limit: Annotated[
        str, typer.Option(help="bytes per second of each worker, e.g. 2M; not for what ffmpeg fetches")
    ] = "",
    sleep_seconds: Annotated[float, typer.Option(min=0, help="pause of each worker between two clips")] = 1.0,
    retries: Annotated[
        int, typer.Option(min=0, help="further tries of a clip whose failure may pass")
    ] = RunOptions.retries,
    workers: Annotated[
        int, typer.Option(min=1, help="clips at the same time; more get you blocked sooner")
    ] = RunOptions.workers,
    video_format: Annotated[
        str, typer.Option("--format", help="yt-dlp's format selection (default: mp4, at most 360 lines, with sound)")
    ] = "",
    sections: Annotated[
        bool, typer.Option("--sections/--whole", help="keep the listed seconds only, or the whole videos")
    ] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many clips of this machine's share")] = None,
    part: Annotated[str, typer.Option(help="this machine's share: 3/8 is the third of eight machines")] = "1/1",
    shuffle_seed: Annotated[
        int | None, typer.Option(help="shuffle the list first; give every machine the same seed")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="also try again what failed for good")] = False,
    url_template: Annotated[
        str, typer.Option(help="for mirrors: address of a video, with {id} or {name} (ID_START) in it")
    ] = YOUTUBE,
    stop_after_blocks: Annotated[
        int, typer.Option(min=1, help="stop after so many bot checks or request limits in a row")
    ] = RunOptions.stop_after_blocks,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="seconds of silence after which a connection counts as dead")
    ] = SiteOptions.timeout_seconds,
) -> None:
    """Fetch the clips of a list; the command's name says which dataset it is."""
    dataset, share = context.info_name or "", part_of(part)
    site = SiteOptions(
        cutting=best_cutting(sections),
        url_template=_checked_template(url_template),
        format=video_format,
        cookies=_read_cookies(cookies),
        rate_limit=_bytes_of(rate_limit),
        timeout_seconds=timeout,
    )
    require_yt_dlp()
    folder = out or Path("data") / dataset
    make_folder(folder)
    list_path = _list_of(dataset, source, folder)
    segments = choose_segments(_read_list(list_path, dataset), share, limit, shuffle_seed)
    options = RunOptions(workers, retries, sleep_seconds, stop_after_blocks=stop_after_blocks)
    _fetch_segments(segments, folder, site, Journal(folder, share), options, retry_failed)
    typer.echo(f"next: mavil shards make {list_path} SHARDS --format {dataset} --media {folder}")


def _fetch_segments(
    segments: Sequence[Segment],
    folder: Path,
    site: SiteOptions,
    journal: Journal,
    options: RunOptions,
    retry_failed: bool,
) -> None:
    """Fetch what is missing, and tell what was there before, what came and what did not."""
    console = Console()
    # Where whole videos are kept, two segments of one video are one file.
    segments = list({file_name(segment, site.cutting): segment for segment in segments}.values())
    if site.cutting == "here":
        console.print(
            "ffmpeg is not installed: whole videos are fetched and cut afterwards, which takes far more traffic; "
            "with ffmpeg (apt-get install ffmpeg) only the listed seconds come",
            soft_wrap=True,
        )
    on_disk = frozenset(os.listdir(folder))
    todo, done = pending_segments(
        segments, on_disk, lambda segment: file_name(segment, site.cutting), journal, retry_failed
    )
    console.print(_before(len(segments), len(todo), done), highlight=False, soft_wrap=True)

    def fetch(segment: Segment, stop: threading.Event) -> Path:
        return fetch_with_yt_dlp(segment, folder, site, stop)

    with _bar(len(todo), console) as on_result:
        outcome = ClipRun(fetch, journal, options).run(todo, on_result)
    _report(outcome, done, len(segments), console)
    _conclude(outcome, len(todo))


def _list_of(dataset: str, source: str, folder: Path) -> Path:
    known = VIDEO_LISTS[dataset]
    if source in known:
        return fetch_small_file(known[source], Place(folder), TransferOptions())
    if not Path(source).is_file():
        raise UserError(
            f"{source}: no such list; give the path of the official CSV, or {' or '.join(known)} to fetch it"
        )
    return Path(source)


def _read_list(path: Path, dataset: str) -> list[Segment]:
    segments, mangled = read_segments(path, dataset)
    if mangled:
        typer.echo(f"{path}: {len(mangled)} rows have no YouTube id ({mangled[0]!r} ...) and are left out", err=True)
    return segments


def _checked_template(template: str) -> str:
    try:
        is_one = template.format(id="A", name="A_000000") != template
    except (LookupError, ValueError):
        is_one = False
    if not is_one or not template.startswith(("http://", "https://")):
        raise UserError(f"--url-template {template}: write an http(s) address with {{id}} or {{name}} in it")
    return template


def _read_cookies(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cookies {path}: cannot be read: {error}") from None
    if not re.match(r"# (Netscape )?HTTP Cookie File", text):
        raise UserError(f"--cookies {path}: not a cookies.txt; its first line must be '# Netscape HTTP Cookie File'")
    return text


def _bytes_of(text: str) -> int | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", text.upper())
    if not match or float(match[1]) == 0:
        raise UserError(f"--rate-limit {text}: write bytes per second such as 500K or 2M")
    return int(float(match[1]) * 1024 ** " KMG".index(match[2] or " "))


def _before(listed: int, todo: int, done: Counter[str]) -> str:
    failed = sum(count for cause, count in done.items() if cause != "ok")
    text = f"{listed} clips listed, {done['ok']} already there, {todo} to fetch"
    return f"{text}, {failed} failed for good earlier (--retry-failed tries them again)" if failed else text


@contextmanager
def _bar(total: int, console: Console) -> Iterator[Callable[[Attempt], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    counts, last = Counter[str](), time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("clips", total=total)

        def on_result(attempt: Attempt) -> None:
            nonlocal last
            counts["fetched" if attempt.is_ok else "failed"] += 1
            text = f"{counts['fetched']} fetched, {counts['failed']} failed"
            progress.update(task, advance=1, description=text)
            if not console.is_terminal and time.monotonic() - last >= LOG_EVERY_SECONDS:
                last = time.monotonic()
                console.print(f"{counts.total()} of {total} clips: {text}", highlight=False)

        yield on_result


def _report(outcome: Outcome, done: Counter[str], listed: int, console: Console) -> None:
    """What is there, and what is not by cause, earlier runs included."""
    counts = outcome.causes + done
    console.print(
        f"{counts['ok']} of {listed} clips are there ({_percent(counts['ok'], listed)}), {outcome.causes['ok']} of them new",
        highlight=False,
        soft_wrap=True,
    )
    failures = [(cause, count) for cause, count in counts.most_common() if cause != "ok"]
    if failures:
        table = Table("missing because of", "clips", "of the list", "again at the next run")
        for cause, count in failures:
            table.add_row(cause, str(count), _percent(count, listed), "no" if cause in PERMANENT else "yes")
        console.print(table)


def _conclude(outcome: Outcome, todo: int) -> None:
    if outcome.is_interrupted:
        raise Interrupted("stopped; run the same command to go on")
    if outcome.ended_early:
        raise DownloadError(outcome.ended_early)
    left = todo - sum(count for cause, count in outcome.causes.items() if cause == "ok" or cause in PERMANENT)
    if left:
        raise DownloadError(f"{left} clips failed for causes that may pass: run the same command to try them again")


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(1, total):.1f} %"
