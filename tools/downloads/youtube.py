"""One clip through yt-dlp: the listed seconds of a video as ``ID_000030.mp4``.

With ffmpeg, yt-dlp fetches the listed span alone and cuts it to the frame. Without ffmpeg it cannot cut, so the whole
video is fetched and mavil's own encoder cuts the span: slower, more traffic, the same result.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mavil.data.media import cut_clip
from mavil.data.media.containers import DecodeError, open_media, start_of
from mavil.structs import UserError
from tools.downloads.causes import Cause, cause_of
from tools.downloads.segments import Segment

YOUTUBE = "https://www.youtube.com/watch?v={id}"
PARTIAL = ".partial"
"""Folder of unfinished clips in OUT; hidden, so that nothing there is taken for a clip."""
FORMAT_WITH_FFMPEG = (
    "bv*[height<=?360][ext=mp4][vcodec^=?avc]+ba[ext=m4a]/b[height<=?360][ext=mp4]/"
    "bv*[height<=?360]+ba/b[height<=?360]/w"
)
"""H.264 at 360 lines and its sound: more than training needs (short side 256), at a tenth of the best one's size."""
FORMAT_WITHOUT_FFMPEG = "b[height<=?360][ext=mp4]/b[height<=?360]/w"
"""Without ffmpeg only formats that hold picture and sound together."""
END_TOLERANCE_SECONDS = 1.0

Cutting = Literal["site", "here", "none"]
"""Who cuts: yt-dlp with ffmpeg while it fetches, mavil afterwards, nobody (the whole video is kept as ``ID.mp4``)."""


class ClipFailure(Exception):  # noqa: N818 (half of a list may end so)
    """A clip that could not be had: ``cause`` to count by, the message for people."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(" ".join(message.split())[:500])
        self.cause: Cause = cause


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The run is to end; the clip was given up in the middle and can go on later."""


@dataclass(frozen=True)
class SiteOptions:
    """How to ask the site.

    ``url_template`` has ``{id}`` for the video, and may have ``{name}`` for the segment; ``cookies`` is the text of a
    cookies.txt; ``rate_limit`` is bytes per second and client; ``format`` empty is the default.
    """

    cutting: Cutting
    url_template: str = YOUTUBE
    format: str = ""
    cookies: str = ""
    rate_limit: int | None = None
    timeout_seconds: float = 30.0
    inner_retries: int = 2


def best_cutting(is_cutting: bool) -> Cutting:
    """Who can cut on this machine."""
    if not is_cutting:
        return "none"
    return "site" if shutil.which("ffmpeg") else "here"


def require_yt_dlp() -> None:
    """Raise a UserError that says how to install yt-dlp where it is missing."""
    if find_spec("yt_dlp") is None:
        raise UserError("videos are fetched with yt-dlp, which is not installed: run pip install -e '.[download]'")


def file_name(segment: Segment, cutting: Cutting) -> str:
    """The file of a clip in OUT; it says mp4 also where the site had another container, which readers see by its content."""
    return f"{segment.video_id if cutting == 'none' else segment.name}.mp4"


def fetch_with_yt_dlp(segment: Segment, out: Path, options: SiteOptions, stop: threading.Event) -> Path:
    """Fetch one clip; its file appears in ``out`` only when it is whole and can be read.

    ffmpeg takes a connection that ends early for the end of the video. What it leaves is looked at, and if something is
    missing the whole video is fetched after all, by yt-dlp itself, which counts the bytes.

    Raises:
        ClipFailure: it cannot be had, now or ever.
        Stopped: ``stop`` was set meanwhile.
    """
    try:
        return _fetch(segment, out, options, stop)
    except ClipFailure as error:
        if options.cutting != "site" or error.cause != "incomplete":
            raise
        return _fetch(segment, out, replace(options, cutting="here"), stop)


def _fetch(segment: Segment, out: Path, options: SiteOptions, stop: threading.Event) -> Path:
    import yt_dlp

    def look_whether_to_stop(_: dict[str, Any]) -> None:
        if stop.is_set():
            raise Stopped

    look_whether_to_stop({})
    partial = out / PARTIAL
    partial.mkdir(exist_ok=True)
    target = out / file_name(segment, options.cutting)
    # Half a span is no beginning of the video: the two must never be taken for each other.
    stem = partial / f"{target.stem}.{options.cutting}"
    url = options.url_template.format(id=segment.video_id, name=segment.name)
    try:
        with yt_dlp.YoutubeDL(_settings(segment, stem, options, look_whether_to_stop)) as client:
            info = client.extract_info(url, download=True)
        fetched = Path(info["requested_downloads"][0]["filepath"])
    except yt_dlp.utils.YoutubeDLError as error:
        raise ClipFailure(cause_of(str(error)), str(error)) from None
    except (LookupError, TypeError):
        raise ClipFailure("other", "yt-dlp returned without a file") from None
    except OSError as error:
        raise ClipFailure(cause_of(str(error)), str(error)) from None
    look_whether_to_stop({})
    return _finish(segment, fetched, target, options.cutting, info.get("duration"))


def _settings(
    segment: Segment, stem: Path, options: SiteOptions, hook: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    import yt_dlp

    settings: dict[str, Any] = {
        "format": options.format or (FORMAT_WITH_FFMPEG if shutil.which("ffmpeg") else FORMAT_WITHOUT_FFMPEG),
        "outtmpl": {"default": f"{str(stem).replace('%', '%%')}.%(ext)s"},
        "merge_output_format": "mp4",
        "noplaylist": True,
        "quiet": True,
        "noprogress": True,
        "logger": _Silent(),
        "progress_hooks": [hook],
        "continuedl": True,
        "overwrites": True,
        "retries": options.inner_retries,
        "fragment_retries": options.inner_retries,
        # The default would leave out what it cannot fetch, and call the rest a video.
        "skip_unavailable_fragments": False,
        "socket_timeout": options.timeout_seconds,
        # YouTube's pages need a JavaScript engine; only deno is looked for unless others are named.
        "js_runtimes": {"deno": {}, "node": {}, "bun": {}, "quickjs": {}},
    }
    if options.rate_limit is not None:
        settings["ratelimit"] = options.rate_limit
    if options.cookies:
        # yt-dlp writes cookies back when it is done: every clip gets its own copy, or workers would mix theirs.
        settings["cookiefile"] = io.StringIO(options.cookies)
    if options.cutting == "site":
        settings["download_ranges"] = yt_dlp.utils.download_range_func(None, [(segment.start, segment.end)])
        settings["force_keyframes_at_cuts"] = True
        # ffmpeg itself waits for ever on a connection that has gone silent (microseconds), and takes a closed one as the end.
        patience = [
            "-rw_timeout",
            str(int(options.timeout_seconds * 1e6)),
            "-reconnect",
            "1",
            "-reconnect_delay_max",
            "10",
        ]
        settings["external_downloader_args"] = {"ffmpeg_i": patience}
    return settings


def _finish(segment: Segment, fetched: Path, target: Path, cutting: Cutting, video_seconds: float | None) -> Path:
    """Cut if it is our task, look whether the clip is whole, and give it its name."""
    cut = fetched.with_name(f"{target.stem}.cut") if cutting == "here" else fetched
    try:
        if cutting == "here":
            cut.write_bytes(cut_clip(str(fetched), segment.start, segment.end))
        seconds = _shortest_track_seconds(cut)
    except DecodeError as error:
        fetched.unlink(missing_ok=True)
        is_over = error.cause == "too_short" or 0 < (video_seconds or 0) <= segment.start
        cause: Cause = "too_short" if is_over else "undecodable"
        raise ClipFailure(cause, f"{segment.name}: {error}") from None
    except OSError as error:
        raise ClipFailure(cause_of(str(error)), str(error)) from None
    if cutting == "site":
        expected = min(video_seconds or segment.end, segment.end) - segment.start
        if seconds < expected - END_TOLERANCE_SECONDS:
            fetched.unlink()
            raise ClipFailure("incomplete", f"{segment.name}: {seconds:.1f} s came, {expected:.1f} s were expected")
    cut.replace(target)
    if cut != fetched:
        fetched.unlink()
    return target


def _shortest_track_seconds(path: Path) -> float:
    """Where the track that ends first has its end, s."""
    with open_media(str(path)) as container:
        tracks = [track for track in container.streams if track.type in ("audio", "video")]
        ends = dict.fromkeys((track.index for track in tracks), 0.0)
        for packet in container.demux(tracks):
            if packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(ends[packet.stream_index], end)
        if not any(ends.values()):
            raise DecodeError("empty", "the file has neither sound nor picture")
        return min(ends.values()) - start_of(container)


class _Silent:
    """yt-dlp's messages go to the journal through its exceptions; nothing is printed among the progress bar."""

    def debug(self, message: str) -> None: ...

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...
