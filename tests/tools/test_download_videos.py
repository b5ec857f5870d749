"""Clips of video lists: real yt-dlp against a real server on loopback, and the command line that stops and goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mavil.data.media import encode_clip, probe
from mavil.data.sources.listing import SourceOptions
from mavil.data.sources.read import read_source
from tests.support.http_server import FileServer, serve
from tests.tools.conftest import Tool
from tools.downloads import video_commands, youtube
from tools.downloads.catalog import RemoteFile
from tools.downloads.causes import Cause
from tools.downloads.journal import Journal
from tools.downloads.segments import Segment
from tools.downloads.youtube import ClipFailure, SiteOptions, Stopped, fetch_with_yt_dlp

yt_dlp_ffmpeg = pytest.importorskip("yt_dlp.postprocessor.ffmpeg", reason="needs yt-dlp: pip install -e '.[download]'")

IDS = [f"video-{number:05d}" for number in range(40)]
SEGMENTS = [Segment(video_id, 1.0, 3.0) for video_id in IDS]


@pytest.fixture(scope="module")
def movie() -> bytes:
    """Four seconds of picture and sound."""
    frames = torch.randint(0, 255, (40, 3, 32, 32), dtype=torch.uint8)
    return encode_clip(frames, 10, 0.1 * torch.randn(64_000))


@pytest.fixture
def site(movie: bytes) -> Iterator[FileServer]:
    with serve({}) as server:
        server.files |= {f"{video_id}.mp4": movie for video_id in IDS[:3]}
        yield server


@pytest.fixture(autouse=True)
def _without_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine has installed must not decide what is tested."""
    monkeypatch.setattr(youtube.shutil, "which", lambda name: None)


def options_for(site: FileServer, cutting: youtube.Cutting = "here") -> SiteOptions:
    return SiteOptions(cutting, site.address + "/{id}.mp4", timeout_seconds=0.5, inner_retries=0)


def fetch(segment: Segment, out: Path, options: SiteOptions) -> Path:
    out.mkdir(exist_ok=True)
    return fetch_with_yt_dlp(segment, out, options, threading.Event())


def test_the_span_is_cut_out_of_the_video(site: FileServer, tmp_path: Path) -> None:
    path = fetch(SEGMENTS[0], tmp_path, options_for(site))
    assert path == tmp_path / f"{IDS[0]}_000001.mp4"
    info = probe(path.read_bytes())
    assert info.duration_seconds == pytest.approx(2.0, abs=0.1)
    assert info.has_audio
    assert info.has_video
    assert os.listdir(tmp_path / ".partial") == []


def test_a_whole_video_is_kept_as_it_is(site: FileServer, tmp_path: Path, movie: bytes) -> None:
    path = fetch(SEGMENTS[0], tmp_path, options_for(site, "none"))
    assert path == tmp_path / f"{IDS[0]}.mp4"
    assert path.read_bytes() == movie


def test_an_interrupted_video_goes_on_where_it_broke_off(site: FileServer, tmp_path: Path, movie: bytes) -> None:
    path = f"{IDS[0]}.mp4"
    half = len(movie) // 2
    # yt-dlp looks at the address first, and fetches it then.
    site.faults[path] = ["", "short"]
    with pytest.raises(ClipFailure) as caught:
        fetch(SEGMENTS[0], tmp_path, options_for(site))
    assert caught.value.cause == "incomplete"
    assert os.listdir(tmp_path) == [".partial"]
    assert (tmp_path / ".partial" / f"{SEGMENTS[0].name}.here.mp4.part").stat().st_size == half
    fetch(SEGMENTS[0], tmp_path, options_for(site))
    assert site.requests[-1] == (path, half)
    assert probe((tmp_path / f"{SEGMENTS[0].name}.mp4").read_bytes()).duration_seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("faults", "cause"),
    [
        (["404"], "removed"),
        (["500"], "server_error"),
        (["429"], "rate_limited"),
        (["403"], "forbidden"),
        (["", "503"], "server_error"),
        (["", "stall"], "network"),
    ],
)
def test_what_servers_do_gets_its_cause(site: FileServer, tmp_path: Path, faults: list[str], cause: Cause) -> None:
    site.faults[f"{IDS[0]}.mp4"] = faults
    with pytest.raises(ClipFailure) as caught:
        fetch(SEGMENTS[0], tmp_path, options_for(site))
    assert caught.value.cause == cause, str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [".partial"]


def test_a_video_that_ends_before_the_span_and_one_that_is_none(site: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ClipFailure) as caught:
        fetch(Segment(IDS[0], 30.0, 40.0), tmp_path, options_for(site))
    assert caught.value.cause == "too_short"
    site.files[f"{IDS[1]}.mp4"] = bytes(20_000)
    with pytest.raises(ClipFailure) as caught:
        fetch(SEGMENTS[1], tmp_path, options_for(site))
    assert caught.value.cause == "undecodable"
    assert os.listdir(tmp_path) == [".partial"]
    assert os.listdir(tmp_path / ".partial") == []


def test_a_stop_in_the_middle_keeps_what_has_come(site: FileServer, tmp_path: Path, movie: bytes) -> None:
    site.faults[f"{IDS[0]}.mp4"] = ["", "slow"]
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with pytest.raises(Stopped):
        fetch_with_yt_dlp(SEGMENTS[0], tmp_path, options_for(site), stop)
    timer.join()
    assert os.listdir(tmp_path) == [".partial"]
    kept = (tmp_path / ".partial" / f"{SEGMENTS[0].name}.here.mp4.part").read_bytes()
    assert 0 < len(kept) < len(movie)
    assert movie.startswith(kept)


def test_a_span_that_ffmpeg_leaves_unfinished_is_found_and_cut_from_the_whole(
    site: FileServer, tmp_path: Path, movie: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffmpeg calls a broken connection the end of the video, and itself content."""
    (tmp_path / "short.mp4").write_bytes(
        encode_clip(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), 10, torch.zeros(8000))
    )
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "ffmpeg"
    script.write_text(
        '#!/bin/sh\nfor last; do :; done\ncase "$last" in\n'
        f'file:*) cp "{tmp_path}/short.mp4" "${{last#file:}}" ;;\n*) echo "ffmpeg version 7.0" ;;\nesac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(yt_dlp_ffmpeg.FFmpegPostProcessor, "_version_cache", {None: None})
    monkeypatch.setattr(yt_dlp_ffmpeg.FFmpegPostProcessor, "_features_cache", {})
    tried = []
    finish = youtube._finish
    monkeypatch.setattr(youtube, "_finish", lambda *args: (tried.append(args[3]), finish(*args))[1])
    path = fetch(SEGMENTS[0], tmp_path / "out", options_for(site, "site"))
    assert tried == ["site", "here"]
    assert probe(path.read_bytes()).duration_seconds == pytest.approx(2.0, abs=0.1)
    assert os.listdir(tmp_path / "out" / ".partial") == []


def test_the_span_alone_is_asked_for_where_ffmpeg_is() -> None:
    site = SiteOptions("site", rate_limit=1000, cookies="# Netscape HTTP Cookie File\n")
    settings = youtube._settings(SEGMENTS[0], Path("x"), site, lambda _: None)
    assert list(settings["download_ranges"]({}, None)) == [{"start_time": 1.0, "end_time": 3.0}]
    assert settings["force_keyframes_at_cuts"]
    assert settings["skip_unavailable_fragments"] is False
    assert settings["ratelimit"] == 1000
    assert settings["cookiefile"].read() == site.cookies


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "balanced_train_segments.csv"
    path.write_text("".join(f'{video_id}, 1.000, 3.000, "/m/09x0r"\n' for video_id in IDS[:5]))
    return path


def test_the_command_line_fetches_reports_and_goes_on(
    site: FileServer, tmp_path: Path, listed: Path, download: Tool
) -> None:
    out = tmp_path / "clips"
    arguments = [
        "audioset",
        str(listed),
        "--out",
        str(out),
        "--url-template",
        site.address + "/{id}.mp4",
        "--timeout",
        "0.5",
    ]
    arguments += ["--sleep-seconds", "0", "--retries", "0"]
    site.faults[f"{IDS[1]}.mp4"] = ["", *["short"] * 3]
    code, output, error = download(*arguments)
    assert code == 1
    assert error == "download: 1 clips failed for causes that may pass: run the same command to try them again\n"
    assert "2 of 5 clips are there (40.0 %), 2 of them new" in output
    rows = [line.split("│")[1:5] for line in output.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["removed", "2", "40.0 %", "no"],
        ["incomplete", "1", "20.0 %", "yes"],
    ]
    before = len(site.requests)
    code, output, error = download(*arguments)
    assert code == 0, error
    assert {path for path, _ in site.requests[before:]} == {f"{IDS[1]}.mp4"}, "neither what is there nor what is gone"
    assert "3 of 5 clips are there (60.0 %), 1 of them new" in output
    assert f"next: mavil shards make {listed} SHARDS --format audioset --media {out}" in output
    listing = read_source(listed, SourceOptions(format="audioset", media=(out,)))
    assert [clip.path for clip in listing.clips] == [str(out / f"{video_id}_000001.mp4") for video_id in IDS[:3]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--part", "9/8"], "such as 3/8"),
        (["--rate-limit", "fast"], "such as 500K or 2M"),
        (["--url-template", "http://mirror/video.mp4"], "{id} or {name}"),
        (["--cookies", "/nowhere/cookies.txt"], "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(listed: Path, tmp_path: Path, download: Tool, arguments: list[str], words: str) -> None:
    code, _, error = download("audioset", str(listed), "--out", str(tmp_path / "out"), *arguments)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_yt_dlp_the_way_to_install_it_is_told(
    listed: Path, tmp_path: Path, download: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(youtube, "find_spec", lambda name: None)
    code, _, error = download("audioset", str(listed), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "pip install -e '.[download]'" in error


def test_rates() -> None:
    assert [video_commands._bytes_of(text) for text in ("", "100", "500K", "2M", "1.5m")] == [
        None,
        100,
        500 * 1024,
        2 * 1024**2,
        1.5 * 1024**2,
    ]


def test_a_published_list_is_fetched_by_its_name_and_videos_may_be_kept_whole(
    site: FileServer, tmp_path: Path, download: Tool, monkeypatch: pytest.MonkeyPatch, movie: bytes
) -> None:
    rows = [f"{IDS[0]},1,people marching,test", f"{IDS[0]},2,waterfall,train", f"{IDS[1]},1,waterfall,train"]
    site.files["vggsound.csv"] = "\n".join(rows).encode()
    lists = {"all": RemoteFile(site.address + "/vggsound.csv")}
    monkeypatch.setitem(video_commands.VIDEO_LISTS, "vggsound", lists)
    arguments = ["vggsound", "all", "--out", str(tmp_path), "--whole", "--sleep-seconds", "0"]
    code, output, error = download(*arguments, "--url-template", site.address + "/{id}.mp4")
    assert code == 0, error
    assert (tmp_path / f"{IDS[0]}.mp4").read_bytes() == movie
    assert f"next: mavil shards make {tmp_path}/vggsound.csv SHARDS --format vggsound --media {tmp_path}" in output
    listing = read_source(tmp_path / "vggsound.csv", SourceOptions(format="vggsound", media=(tmp_path,)))
    assert [clip.start_seconds for clip in listing.clips] == [1, 2, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(
    site: FileServer, tmp_path: Path, listed: Path, download: Tool, number: signal.Signals
) -> None:
    out, slow = tmp_path / "clips", f"{IDS[2]}.mp4"
    arguments = ["audioset", str(listed), "--out", str(out), "--url-template", site.address + "/{id}.mp4"]
    arguments += ["--sleep-seconds", "0", "--workers", "1"]
    site.faults[slow] = ["", "slow"]

    def press() -> None:
        while [name for name, _ in site.requests].count(slow) < 2 and not site.closing.wait(0.02):
            pass
        os.kill(os.getpid(), number)

    finger = threading.Thread(target=press)
    finger.start()
    code, output, error = download(*arguments)
    finger.join()
    assert code == 75, error
    assert error == "download: stopped; run the same command to go on\n"
    assert "2 of 5 clips are there" in output
    assert set(Journal(out).read()) == {f"{video_id}_000001" for video_id in IDS[:2]}
    code, output, error = download(*arguments)
    assert code == 0, error
    assert "5 clips listed, 2 already there, 3 to fetch" in output
    assert "3 of 5 clips are there" in output
