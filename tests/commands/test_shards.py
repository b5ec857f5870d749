"""``mavil shards make`` and ``check`` as a person types them: what is read, left out, counted and said."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mavil.data.media import encode_clip
from mavil.data.shards.index import read_index
from mavil.data.shards.selection import CAUSES
from tests.commands.conftest import Outcome

Run = Callable[..., Outcome]
NAMES = tuple(f"video_id_{number:02d}" for number in range(6))


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Six clips of two classes; one of them is silent, one is no media file."""
    folder = tmp_path / "media"
    for number, name in enumerate(NAMES):
        path = folder / ("cat" if number % 2 else "dog") / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = torch.full((4, 3, 32, 32), 40 + 20 * number, dtype=torch.uint8)
        sound = (0.3 if number != 2 else 0.0) * torch.sin(torch.arange(8000) / 5)
        path.write_bytes(encode_clip(picture, 8.0, sound) if number != 3 else b"no media" * 99)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def words_of(text: str) -> list[str]:
    """Rows of a printed table, without its lines."""
    return [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]


def test_folder_to_checked_shards(mavil: Run, media: Path, tmp_path: Path) -> None:
    made = mavil("shards", "make", media, tmp_path / "out", "--workers", 0)
    assert made.code == 0, made.err
    assert "5 clips (5 with sound, 5 with picture, 2 labels) in 1 shards" in made.out
    assert "of these silent: 1" in made.out
    expected = ["listed 6 by the source", "found 6 there is a file", "packed 5 usable, in the shards"]
    assert [line for line in words_of(made.out) if line in expected] == expected
    assert f"undecodable 1 {CAUSES['undecodable']}" in words_of(made.out)
    (tmp_path / "out/notes.txt").write_text("mine")
    checked = mavil("shards", "check", tmp_path / "out", "--workers", 0)
    assert (checked.code, checked.err) == (0, "")
    assert "every shard is as its index says, and every clip can be decoded" in checked.out
    assert "not of this set: notes.txt" in checked.out
    shard = read_index(tmp_path / "out").shard_paths[0]
    shard.write_bytes(shard.read_bytes()[:-3000])
    damaged = mavil("shards", "check", tmp_path / "out", "--workers", 0, "--quick")
    assert damaged.code == 2
    assert "000000.tar: " in damaged.out
    assert "problems; copy the shards again or make them again" in damaged.err


def test_workers_and_the_preset_for_training(mavil: Run, media: Path, tmp_path: Path) -> None:
    options = ("--encode", "training", "--seconds", 0.25, "--reject-silent", "--workers", 1, "--clips-per-shard", 2)
    made = mavil("shards", "make", media, tmp_path / "out", *options)
    assert made.code == 0, made.err
    index = read_index(tmp_path / "out")
    assert index.rejected == {"silent": 1, "undecodable": 1}
    assert [shard.num_clips for shard in index.shards] == [2, 2]


def test_clips_that_other_lists_have(mavil: Run, media: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text("youtube_id\n" + "\n".join([NAMES[0], NAMES[4], "another_one"]) + "\n")
    (tmp_path / "bad.txt").write_text(f"{NAMES[1]}\n")
    options = ("--overlap", "eval.csv", "--exclude", "bad.txt", "--workers", 0)
    made = mavil("shards", "make", media, tmp_path / "out", *options)
    assert made.code == 0, made.err
    assert "2 of 6 clips (33.33 %) are among the 3 recordings of eval.csv" in made.out
    assert [(row["source_id"], row["list"]) for row in rows_of(tmp_path / "out/overlap.csv")] == [
        (NAMES[0], "eval.csv"),
        (NAMES[4], "eval.csv"),
    ]
    rejects = {row["cause"]: row for row in rows_of(tmp_path / "out/rejects.csv")}
    assert rejects["excluded"]["detail"] == "on bad.txt"
    assert read_index(tmp_path / "out").num_clips == 4
    missing = mavil("shards", "make", media, tmp_path / "new", "--exclude", "nowhere.csv")
    assert missing.code == 2
    assert not (tmp_path / "new").exists()


def test_report_only_writes_no_shards(mavil: Run, media: Path, tmp_path: Path) -> None:
    made = mavil("shards", "make", media, tmp_path / "out", "--report-only", "--workers", 0)
    assert made.code == 0, made.err
    assert "usable 5 they would be packed" in words_of(made.out)
    assert [row["cause"] for row in rows_of(tmp_path / "out/rejects.csv")] == ["undecodable"]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".tar"] == []


def test_a_list_with_missing_files_and_classes_in_their_order(mavil: Run, media: Path, tmp_path: Path) -> None:
    (media / "list.csv").write_text(f"path,labels\ndog/{NAMES[0]}.mp4,dog\ncat/{NAMES[1]}.mp4,cat\ncat/gone.mp4,cat\n")
    made = mavil("shards", "make", media / "list.csv", tmp_path / "out", "--format", "csv", "--workers", 0)
    assert made.code == 0, made.err
    lines = words_of(made.out)
    assert "listed 3 by the source" in lines
    assert "found 2 there is a file" in lines
    assert f"missing 1 {CAUSES['missing']}" in lines


def test_synthetic_clips(mavil: Run, tmp_path: Path) -> None:
    options = ("--skip", 1, "--limit", 2, "--keep-order", "--workers", 0)
    made = mavil("shards", "make", "--synthetic", 4, tmp_path / "out", *options)
    assert made.code == 0, made.err
    assert read_index(tmp_path / "out").num_clips == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "media"], "where shall the shards go"),
        (["make", "--synthetic", 2, "media", "out"], "--synthetic needs no source"),
        (["make", "--synthetic", 2, "out", "--exclude", "a.csv"], "--synthetic takes only options of order"),
        (["make", "media", "out", "--format", "mp4"], "is no format of a source"),
        (["make", "media", "out", "--encode", "tiny"], "no such preset; choose one of copy, training"),
        (["make", "media", "out", "--seconds", 5], "whole files are copied as they are"),
        (["make", "media", "out", "--skip", 6], "has 6 clips: none is left with skip 6"),
        (["check", "media"], "no finished set of shards"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(
    mavil: Run, media: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    answer = mavil("shards", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_cause_is_explained_in_a_few_words() -> None:
    assert all(2 <= len(meaning.split()) <= 6 for meaning in CAUSES.values())
