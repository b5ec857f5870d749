"""Runs that are killed: the next one goes on where they were, and the result is that of a run nobody disturbed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from mavil.data.media import encode_clip
from mavil.data.shards.index import read_index
from mavil.data.shards.pack import make_shards, screen_only
from mavil.data.shards.verify import verify_shards
from mavil.structs import Clip, UserError

NUM_CLIPS = 24
OPTIONS = {"clips_per_shard": 4, "show_progress": False}
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.data.shards.test_interruptions import OPTIONS, clips_of, read_slowly
from mavil.data.shards.pack import make_shards
if __name__ == "__main__":
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    make_shards(clips_of(folder / "media"), folder / "killed", read=read_slowly, workers=workers, **OPTIONS)
"""


def clips_of(folder: Path) -> list[Clip]:
    return [Clip(key=path.stem, path=str(path), labels=(path.stem[-1],)) for path in sorted(folder.iterdir())]


def read_slowly(clip: Clip) -> bytes:
    """The file, after a while in which a test can step in; each reading is noted."""
    time.sleep(0.05)
    media = Path(clip.path)
    with (media.parent.parent / "readings").open("a") as file:
        file.write(f"{clip.key}\n")
    return media.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clips that differ, two of them equal and one damaged."""
    (tmp_path / "media").mkdir()
    sound = 0.3 * torch.sin(torch.arange(4000) / 5)
    for number in range(NUM_CLIPS):
        picture = torch.full((2, 3, 32, 32), 40 + 4 * max(1, number), dtype=torch.uint8)
        media = encode_clip(picture, 8.0, sound) if number != 7 else b"no media" * 100
        (tmp_path / f"media/{number:02d}.mp4").write_bytes(media)
    return tmp_path


def kill_when(condition: Callable[[], bool], folder: Path, workers: int) -> None:
    """Start a run in a process of its own and kill it as soon as the condition holds."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(root=str(Path(__file__).parents[3])))
    process = subprocess.Popen([sys.executable, str(program), str(folder), str(workers)])
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "the run did not come so far in time"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def num_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_run_is_continued_to_the_same_bytes(folder: Path) -> None:
    clips, staging = clips_of(folder / "media"), folder / "killed/.incomplete"
    journal, readings = staging / "verdicts.jsonl", folder / "readings"
    kill_when(lambda: num_lines(journal) >= 5, folder, workers=0)
    with journal.open("a") as file:
        file.write('[5, "unde')  # as a kill in the middle of a line would leave it
    num_screened = num_lines(journal)
    assert 5 <= num_screened < NUM_CLIPS
    kill_when(lambda: (staging / "000001.json").exists(), folder, workers=2)
    assert num_lines(journal) == NUM_CLIPS
    finished = {path.stem for path in staging.glob("*.json")} - {"plan"}
    assert {"000000", "000001"} <= finished < {f"{number:06d}" for number in range(6)}
    before = {name: (staging / f"{name}.tar").stat() for name in finished}
    readings.unlink()
    index = make_shards(clips, folder / "killed", read=read_slowly, **OPTIONS)
    for name, status in before.items():  # moved as they were
        now = (folder / f"killed/{name}.tar").stat()
        assert (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert num_lines(readings) == index.num_clips - sum(s.num_clips for s in index.shards if s.name[:6] in finished)
    make_shards(clips, folder / "whole", read=read_slowly, **OPTIONS)
    assert files_in(folder / "killed") == files_in(folder / "whole")
    assert verify_shards(folder / "killed", show_progress=False) == []
    assert index.rejected == {"duplicate": 1, "undecodable": 1}


def test_the_number_of_workers_changes_nothing(folder: Path) -> None:
    clips = clips_of(folder / "media")
    make_shards(clips, folder / "none", **OPTIONS)
    make_shards(clips, folder / "two", workers=2, **OPTIONS)
    assert files_in(folder / "none") == files_in(folder / "two")


def interrupt(clips: list[Clip], out: Path, after: int, **options: object) -> None:
    """A run that ends with Ctrl-C after so many readings."""
    left = [after]

    def read(clip: Clip) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return Path(clip.path).read_bytes()

    read.__qualname__ = read_at_once.__qualname__
    with pytest.raises(KeyboardInterrupt):
        make_shards(clips, out, read=read, **{**OPTIONS, **options})


def read_at_once(clip: Clip) -> bytes:
    return Path(clip.path).read_bytes()


def test_other_options_do_not_continue_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, out = clips_of(folder / "media"), folder / "out"
    make = partial(make_shards, read=read_at_once, **{**OPTIONS, "show_progress": True})
    interrupt(clips, out, NUM_CLIPS + 9)
    before = files_in(out / ".incomplete")
    for options, expected in (
        ({"seed": 5}, "seed 0 instead of 5"),
        ({"clips_per_shard": 3}, "clips_per_shard 4 instead of 3"),
        ({"require": ("audio",)}, "require .*video.* instead of"),
    ):
        with pytest.raises(UserError, match=f"an unfinished set lies there, made with {expected}.*--restart"):
            make(clips, out, **options)
    with pytest.raises(UserError, match="made with other clips"):
        make(clips[1:], out)
    assert files_in(out / ".incomplete") == before
    capsys.readouterr()
    make(clips, out)
    said = capsys.readouterr().out
    assert "24 of 24 clips were looked at before" in said
    assert "2 of 6 shards were written before" in said


def test_restart_throws_an_unfinished_set_away(folder: Path) -> None:
    clips, out = clips_of(folder / "media"), folder / "out"
    interrupt(clips, out, NUM_CLIPS + 9)
    index = make_shards(clips[:8], out, restart=True, **OPTIONS)
    assert index.num_clips == 6
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".tar") == ["000000.tar", "000001.tar"]
    assert not (out / ".incomplete").exists()


def test_two_programs_do_not_write_into_one_folder(folder: Path) -> None:
    clips, out = clips_of(folder / "media"), folder / "out"
    (out / ".incomplete").mkdir(parents=True)
    with (out / ".incomplete/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another program is making shards there"):
            make_shards(clips, out, **OPTIONS)
    assert make_shards(clips, out, **OPTIONS).num_clips == 22


def test_looking_only_writes_the_list_and_is_not_done_twice(folder: Path) -> None:
    clips, out = clips_of(folder / "media"), folder / "out"
    rejects = screen_only(clips, out, read=read_slowly, **OPTIONS)
    assert [(reject.key, reject.cause) for reject in rejects] == [("01", "duplicate"), ("07", "undecodable")]
    assert sorted(path.name for path in out.iterdir()) == [".incomplete", "rejects.csv"]
    with pytest.raises(UserError, match="no finished set of shards"):
        read_index(out)
    (folder / "readings").unlink()
    assert make_shards(clips, out, read=read_slowly, **OPTIONS).num_clips == 22
    assert num_lines(folder / "readings") == 22
    with pytest.raises(UserError, match="already holds shards"):
        screen_only(clips, out, read=read_slowly, **OPTIONS)


def die_at_third(clip: Clip) -> bytes:
    """Ends its process at one clip, but only once all have been looked at."""
    if clip.key == "03" and num_lines(Path(clip.path).parent.parent / "out/.incomplete/verdicts.jsonl") == 8:
        os.kill(os.getpid(), signal.SIGSEGV)
    return Path(clip.path).read_bytes()


def test_a_clip_that_ends_the_writing_process_is_left_out(folder: Path) -> None:
    clips = clips_of(folder / "media")[:8]
    index = make_shards(clips, folder / "out", read=die_at_third, workers=1, keep_order=True, **OPTIONS)
    assert index.rejected == {"duplicate": 1, "killed": 1, "undecodable": 1}
    assert [shard.num_clips for shard in index.shards] == [2, 3]
