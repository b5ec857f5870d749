"""The run over a list of videos without any network: causes, tries, journal, lists and shares."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from mavil.structs import UserError
from tools.downloads.causes import BLOCKS, PERMANENT, Cause, cause_of
from tools.downloads.clips import ClipRun, RunOptions, pending_segments
from tools.downloads.journal import Attempt, Journal
from tools.downloads.segments import Segment, choose_segments, part_of, read_segments
from tools.downloads.youtube import ClipFailure

SEGMENTS = [Segment(f"video-{number:05d}", 1.0, 3.0) for number in range(40)]
QUICK = RunOptions(workers=2, retries=2, first_pause_seconds=0.001)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("ERROR: [youtube] abc: Private video. Sign in if you've been granted access to this video", "private"),
        ("ERROR: [youtube] abc: Video unavailable", "removed"),
        ("ERROR: [youtube] abc: Video unavailable. This video has been removed by the uploader", "removed"),
        ("ERROR: [youtube] abc: This video is not available", "removed"),
        (
            "ERROR: [youtube] abc: Video unavailable. This video is no longer available because the YouTube account "
            "associated with this video has been terminated.",
            "terminated_account",
        ),
        (
            "ERROR: [youtube] abc: Video unavailable. This video is no longer available because the uploader has closed "
            "their YouTube account.",
            "terminated_account",
        ),
        (
            "ERROR: [youtube] abc: Video unavailable. The uploader has not made this video available in your country",
            "geo_blocked",
        ),
        (
            "ERROR: [youtube] abc: Video unavailable. This video contains content from SME, who has blocked it in your "
            "country on copyright grounds",
            "copyright",
        ),
        (
            "ERROR: [youtube] abc: Video unavailable. This video is no longer available due to a copyright claim by X",
            "copyright",
        ),
        (
            "ERROR: [youtube] abc: Sign in to confirm your age. This video may be inappropriate for some users.",
            "age_restricted",
        ),
        ("ERROR: [youtube] abc: Sign in to confirm you’re not a bot. Use --cookies-from-browser", "bot_check"),
        ("ERROR: [youtube] abc: Sign in to confirm you're not a bot. This helps protect our community.", "bot_check"),
        (
            "ERROR: [youtube] abc: Video unavailable. This content isn't available, try again later. Your account has been "
            "rate-limited by YouTube for up to an hour.",
            "rate_limited",
        ),
        ("ERROR: unable to download video data: HTTP Error 429: Too Many Requests", "rate_limited"),
        ("ERROR: unable to download video data: HTTP Error 403: Forbidden", "forbidden"),
        ("ERROR: [youtube] abc: Join this channel to get access to members-only content like this video", "members_only"),
        ("ERROR: [youtube] abc: This video requires payment to watch", "members_only"),
        ("ERROR: [youtube] abc: Premieres in 3 hours", "not_started"),
        ("ERROR: [youtube] abc: Requested format is not available. Use --list-formats", "no_format"),
        ("ERROR: [generic] Unable to download webpage: HTTP Error 404: Not Found", "removed"),
        ("ERROR: [youtube] abc: Unable to download API page: HTTP Error 502: Bad Gateway", "server_error"),
        ("ERROR: [youtube] abc: Unable to download webpage: The read operation timed out", "network"),
        ("ERROR: [youtube] abc: Unable to download webpage: <urlopen error [Errno -3] Temporary failure in name "
         "resolution>", "network"),
        ("ERROR: 100 bytes read, 50 more expected", "incomplete"),
        ("ERROR: [download] Got error: Downloaded 5000 bytes, expected 58194 bytes", "incomplete"),
        ("ERROR: unable to write data: [Errno 28] No space left on device", "disk_full"),
        ("ERROR: [youtube] private-vid: Something nobody has seen before", "other"),
        ("ERROR: [youtube] copyright-1: Video unavailable", "removed"),
    ],
)  # fmt: skip
def test_what_yt_dlp_says_gets_its_cause(message: str, cause: Cause) -> None:
    assert cause_of(message) == cause


def test_causes_that_may_pass_are_not_final() -> None:
    passing = {"network", "server_error", "incomplete", "forbidden", "other", "undecodable", "not_started", "disk_full"}
    assert not PERMANENT & (BLOCKS | passing)


class Scripted:
    """A fetch function whose clips fail as told, in order, and then succeed."""

    def __init__(self, out: Path, **causes: list[Cause]) -> None:
        self.out, self.causes, self.calls = out, causes, list[str]()
        self.always: Cause | None = None

    def __call__(self, segment: Segment, stop: threading.Event) -> Path:
        self.calls.append(segment.name)
        causes = self.causes.get(segment.name, [])
        cause = self.always or (causes.pop(0) if causes else None)
        if cause:
            raise ClipFailure(cause, f"it is {cause}")
        path = self.out / f"{segment.name}.mp4"
        path.write_bytes(b"clip")
        return path


def todo_of(tmp_path: Path, retry: bool = False) -> list[str]:
    names = frozenset(os.listdir(tmp_path))
    todo, _ = pending_segments(SEGMENTS, names, lambda segment: f"{segment.name}.mp4", Journal(tmp_path), retry)
    return [segment.name for segment in todo]


def test_what_passes_is_tried_again_and_what_does_not_is_not(tmp_path: Path) -> None:
    gone, shaky, down = (segment.name for segment in SEGMENTS[:3])
    fetch = Scripted(tmp_path, **{gone: ["private"], shaky: ["network", "rate_limited"], down: ["server_error"] * 9})
    outcome = ClipRun(fetch, Journal(tmp_path), QUICK).run(SEGMENTS)
    assert outcome.causes == {"ok": 38, "private": 1, "server_error": 1}
    assert [fetch.calls.count(name) for name in (gone, shaky, down)] == [1, 3, 3]
    assert todo_of(tmp_path) == [down], "the next run takes what may have passed"
    assert todo_of(tmp_path, retry=True) == [gone, down]
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len(rows) == len(SEGMENTS)
    assert {row["cause"] for row in rows if row["name"] == gone} == {"private"}


def test_the_disk_decides_what_is_there(tmp_path: Path) -> None:
    ClipRun(Scripted(tmp_path), Journal(tmp_path), QUICK).run(SEGMENTS)
    assert todo_of(tmp_path) == []
    (tmp_path / f"{SEGMENTS[5].name}.mp4").unlink()
    assert todo_of(tmp_path) == [SEGMENTS[5].name]


def test_a_site_that_blocks_ends_the_run(tmp_path: Path) -> None:
    fetch = Scripted(tmp_path)
    fetch.always = "bot_check"
    options = RunOptions(workers=2, retries=1, first_pause_seconds=0.001, stop_after_blocks=6)
    outcome = ClipRun(fetch, Journal(tmp_path), options).run(SEGMENTS)
    assert "turned us away 6 times in a row" in outcome.ended_early
    assert "\n" not in outcome.ended_early
    assert len(fetch.calls) <= 8, "the list is not burnt"
    assert len(todo_of(tmp_path)) == len(SEGMENTS)


def test_an_answer_between_bot_checks_lets_the_run_go_on(tmp_path: Path) -> None:
    names = [segment.name for segment in SEGMENTS]
    fetch = Scripted(
        tmp_path, **{name: ["bot_check"] for name in names[::2]}, **{name: ["private"] for name in names[1::2]}
    )
    options = RunOptions(workers=1, retries=0, stop_after_blocks=2)
    outcome = ClipRun(fetch, Journal(tmp_path), options).run(SEGMENTS)
    assert not outcome.ended_early
    assert len(fetch.calls) == len(SEGMENTS)


def test_a_full_disk_ends_the_run_in_one_line(tmp_path: Path) -> None:
    fetch = Scripted(tmp_path)
    fetch.always = "disk_full"
    with pytest.raises(UserError, match="make room or choose another --out"):
        ClipRun(fetch, Journal(tmp_path), QUICK).run(SEGMENTS)
    assert len(fetch.calls) <= 4


def test_a_mistake_of_ours_is_not_swallowed_by_a_thread(tmp_path: Path) -> None:
    def broken(segment: Segment, stop: threading.Event) -> Path:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ClipRun(broken, Journal(tmp_path), QUICK).run(SEGMENTS)


def test_a_journal_survives_a_line_that_was_cut_short(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(Attempt("a", "ok", time="1"))
    journal.add(Attempt("b", "private", time="2"))
    journal.path.write_bytes(journal.path.read_bytes()[:-20])
    assert set(journal.read()) == {"a"}
    journal.add(Attempt("c", "removed", "two\nlines ’", time="3"))
    assert set(Journal(tmp_path).read()) == {"a", "c"}
    assert journal.read()["c"].message == "two\nlines ’"


def test_machines_that_share_a_folder_read_each_others_journals(tmp_path: Path) -> None:
    Journal(tmp_path, (1, 2)).add(Attempt("a", "network", time="1"))
    Journal(tmp_path, (2, 2)).add(Attempt("a", "private", time="2"))
    assert sorted(os.listdir(tmp_path)) == ["journal-1-of-2.jsonl", "journal-2-of-2.jsonl"]
    assert Journal(tmp_path).read()["a"].cause == "private"


def test_lists_are_read_as_published(tmp_path: Path) -> None:
    audioset = tmp_path / "balanced.csv"
    audioset.write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, "
        'positive_labels\n--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n#NAME?, 0.000, 10.000, "/m/09x0r"\n'
        '-0.5x_AbCdE, 12.500, 22.500, "/m/09x0r"\n-0_5x_AbCdE, 12.500, 22.500, "/m/09x0r"\n'
    )  # fmt: skip
    segments, mangled = read_segments(audioset, "audioset")
    assert [segment.name for segment in segments] == ["--PJHxphWEs_000030", "-0_5x_AbCdE_000012.500"]
    assert mangled == ["#NAME?", "-0.5x_AbCdE"]
    vggsound = tmp_path / "vggsound.csv"
    vggsound.write_text('---g-f_I2yQ,1,"people marching",test\n--0PQM4-hqg,30,waterfall,train\n')
    assert read_segments(vggsound, "vggsound")[0] == [Segment("---g-f_I2yQ", 1, 11), Segment("--0PQM4-hqg", 30, 40)]
    vggsound.write_text("glLQrEijrKg_000300.mp4,playing hammond organ\n")
    assert read_segments(vggsound, "vggsound")[0] == [Segment("glLQrEijrKg", 300, 310)]
    with pytest.raises(UserError, match="line 1: not id, start, end and labels"):
        read_segments(vggsound, "audioset")


def test_shares_make_up_the_list() -> None:
    shares = [choose_segments(SEGMENTS, (number, 3), None, shuffle_seed=7) for number in (1, 2, 3)]
    names = [segment.name for share in shares for segment in share]
    assert sorted(names) == sorted(segment.name for segment in SEGMENTS)
    assert [segment.name for segment in shares[0]] != [segment.name for segment in SEGMENTS[::3]]
    assert choose_segments(SEGMENTS, (2, 3), 2, None) == [SEGMENTS[1], SEGMENTS[4]]
    assert part_of("3/8") == (3, 8)
    for wrong in ("9/8", "0/8", "3", "a/b"):
        with pytest.raises(UserError, match="such as 3/8"):
            part_of(wrong)


def test_a_clip_that_fails_for_its_own_reasons_is_given_up_after_three_runs(tmp_path: Path) -> None:
    journal, rows = Journal(tmp_path), [("a", "incomplete"), ("b", "network"), ("c", "undecodable")]
    for run in range(3):
        assert journal.given_up() == frozenset()
        for name, cause in rows:
            journal.add(Attempt(name, "incomplete" if (name, run) == ("c", 1) else cause, time=f"2026-01-0{run + 1}"))
    assert journal.given_up() == {"a"}  # the network may be back, and c failed in two ways
    segment = SEGMENTS[0]
    for run in range(3):
        journal.add(Attempt(segment.name, "incomplete", time=f"2026-01-0{run + 1}"))
    pending, done = pending_segments([segment], frozenset(), lambda one: one.name, journal, retry=False)
    assert (pending, done) == ([], {"incomplete": 1})
    assert pending_segments([segment], frozenset(), lambda one: one.name, journal, retry=True)[0] == [segment]
