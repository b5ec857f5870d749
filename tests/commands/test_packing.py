"""Clips given as files: a CSV or folders train a classifier with nothing else, are packed once, and mistakes are one line."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mavil.commands import packing
from mavil.commands.packing import AUTO, is_media, known_shards, pack_once, with_packed_clips
from mavil.data.media import encode_clip
from mavil.data.shards import screening
from mavil.data.shards.index import read_index
from mavil.data.shards.statistics import read_statistics
from mavil.data.synthetic import class_of, list_synthetic, read_synthetic, synthetic_clip
from mavil.recipe import load_recipe
from mavil.structs import Clip, UserError
from tests.commands.conftest import Outcome
from tests.commands.test_bad_input import assert_told
from tests.support.ranks import run_in_ranks

Mavil = Callable[..., Outcome]

ROOT = Path(__file__).parents[2]
CUSTOM = ROOT / "configs/finetune/custom_av.yaml"
NUM_TRAIN, NUM_TEST = 10, 6
TOWER = "{width: 32, depth: 1, num_heads: 2}"
SMALL = (
    f"audio.encoder={TOWER}",
    f"video.encoder={TOWER}",
    "fusion.depth=1",
    "video.size=32",
    "video.decode_short_side=32",
    "data.num_workers=0",
    "trainer.device_batch=4",
    "trainer.device=cpu",
    "trainer.num_threads=1",
    "schedule.length=2 steps",
    "schedule.warmup=1 step",
)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test``, each with a folder per class; two classes, real mp4 files."""
    folder = tmp_path_factory.mktemp("media")
    # Numbers 0, 1, 8, 9, ... are of the first two classes.
    numbers = [8 * (i // 2) + i % 2 for i in range(NUM_TRAIN + NUM_TEST)]
    for i, number in enumerate(numbers):
        (clip,) = list_synthetic(1, seed=0, first=number)
        place = folder / ("train" if i < NUM_TRAIN else "test") / clip.labels[0]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.mp4").write_bytes(read_synthetic(clip))
    return folder


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_num_workers", lambda: 0)


def write_list(
    path: Path, folder: Path, *extra: str, label: Callable[[Path], str] = lambda file: file.parent.name
) -> Path:
    """A CSV of the files below a folder, paths relative to the CSV, and rows of one's own."""
    rows = [[os.path.relpath(file, path.parent), label(file)] for file in sorted(folder.rglob("*.mp4"))]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "labels"], *rows, *(row.split(",") for row in extra)])
    return path


def train(mavil: Mavil, *changes: object) -> Outcome:
    return mavil("train", CUSTOM, *SMALL, *changes)


def shards_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"{AUTO}/*/index.json"))


def test_a_list_trains_a_classifier_and_folders_do_too(mavil: Mavil, media: Path, tmp_path: Path) -> None:
    write_list(tmp_path / "clips.csv", media / "train", "gone.mp4,none")
    done = train(mavil, "data.train=clips.csv", f"data.eval={media / 'test'}", "data.max_skip_ratio=0.1")
    assert done.code == 0, done.err
    text = " ".join((done.out + done.err).split())
    # What was left out is counted, and the sound is measured.
    assert "missing 1 " in " ".join(text.replace("│", "").split())
    assert f"measured on {NUM_TRAIN} clips of shards/auto/clips-" in text
    evaluated, trained = sorted(shards_in(tmp_path), key=lambda folder: folder.name, reverse=True)
    assert (read_index(trained).num_clips, read_index(evaluated).num_clips) == (NUM_TRAIN, NUM_TEST)
    run = load_recipe(tmp_path / "runs/custom_av/config.yaml")
    assert run.data.train == str(trained.relative_to(tmp_path))
    assert run.data.evaluation == str(evaluated.relative_to(tmp_path))
    classes = (tmp_path / "runs/custom_av/classes.txt").read_text().split("\n")
    assert classes == [*sorted((class_of(0), class_of(1))), ""]
    # Another run finds everything and looks at no clip again, and so does a check.
    again = train(
        mavil, f"data.train={tmp_path / 'clips.csv'}", "--check", "data.max_skip_ratio=0.1", "--out", "runs/new"
    )
    assert again.code == 0, again.err
    assert "packing 1" not in again.out
    assert f"measured on {NUM_TRAIN} clips of shards/auto/clips-" in again.out
    assert len(shards_in(tmp_path)) == 2


def test_what_changes_is_packed_anew_and_what_does_not_is_found(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    test = media / "test"
    path = write_list(tmp_path / "a.csv", test)
    assert known_shards("a.csv") is None
    first = pack_once("a.csv", 0.0).folder
    times = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    assert pack_once(str(path), 0.0).folder == first == known_shards("a.csv")
    assert {file: file.stat().st_mtime_ns for file in first.iterdir()} == times
    # A label, then a file.
    write_list(path, test, label=lambda file: "all")
    second = pack_once("a.csv", 0.0).folder
    touched = next(test.rglob("*.mp4"))
    before = touched.stat()
    os.utime(touched, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    third = known_shards("a.csv")
    os.utime(touched, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert second not in (first, None)
    assert third is None
    assert read_index(second).classes == ("all",)
    assert known_shards("a.csv") == second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_packing_and_the_same_command_goes_on(
    number: signal.Signals, mavil: Mavil, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def inspect_clip(item: tuple[int, Clip], **rules: Any) -> screening.Verdict:
        if len(looked) == 3 and not os.environ.get("GOES_ON"):
            os.kill(os.getpid(), number)
        looked.append(item[0])
        return inspect(item, **rules)

    inspect = screening.inspect_clip
    monkeypatch.setattr(screening, "inspect_clip", inspect_clip)
    told = train(mavil, f"data.train={media / 'test'}")
    assert told.code == 75
    assert "stopped while packing" in told.err
    assert looked == [0, 1, 2]
    assert not shards_in(tmp_path)
    monkeypatch.setenv("GOES_ON", "yes")
    assert known_shards(str(media / "test")) is None
    assert read_index(pack_once(str(media / "test"), 0.0).folder).num_clips == NUM_TEST
    assert looked == list(range(NUM_TEST))


def test_what_is_taken_for_clips(tmp_path: Path) -> None:
    for name in ("unfinished/.incomplete", "tars", "clips/dog"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tars/000000.tar").touch()
    assert is_media(str(tmp_path / "clips"))
    assert is_media("nowhere.csv")
    others = ["nowhere", "s3://bucket/clips.csv", str(tmp_path / "tars"), str(tmp_path / "unfinished")]
    assert not any(map(is_media, others))


def test_without_a_picture_the_model_hears_alone(mavil: Mavil, tmp_path: Path) -> None:
    for number in range(8):
        sound = synthetic_clip(0, number).waveform
        place = tmp_path / "sounds" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.m4a").write_bytes(encode_clip(None, 8.0, sound))
    done = train(mavil, "data.train=sounds", "task.masking.video_ratio=0.2", "optimizer.lr_factors.video_encoder=0.5")
    assert done.code == 0, done.err
    text = " ".join((done.out + done.err).split())
    assert "no training clip has a picture: trained on audio alone" in text
    assert "data.evaluation is not set: nothing is evaluated" in text
    assert load_recipe(tmp_path / "runs/custom_av/config.yaml").modalities == ("audio",)
    told = train(
        mavil, "data.train=sounds", "task.modalities=[video]", "task.modality_dropout=0", "--out", "runs/other"
    )
    assert_told(told, "none of its 8 clips has a picture", "task.modalities=[audio]")


def test_clips_of_both_lists_are_said(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "both.csv", media / "test")
    remarks: list[str] = []
    recipe = load_recipe(CUSTOM, [f"data.train={media / 'test'}", "data.eval=both.csv", "audio.mean=-4", "audio.std=4"])
    packed = with_packed_clips(recipe, remarks)
    assert f"{NUM_TEST} of {NUM_TEST} evaluation clips are training clips too" in remarks[-1]
    assert packed.data.train is not None
    folder = Path(packed.data.train)
    assert read_statistics(folder, read_index(folder)) is None  # the recipe has its own


def test_mistakes_in_a_list(mavil: Mavil, media: Path, tmp_path: Path) -> None:
    assert_told(train(mavil, "data.train=nowhere.csv"), "nowhere.csv", "no such CSV")
    path = tmp_path / "clips.csv"
    path.write_text("")
    assert_told(train(mavil, "data.train=clips.csv"), "clips.csv", "the file is empty", "'path'")
    path.write_text("path,labels\n")
    assert_told(train(mavil, "data.train=clips.csv"), "clips.csv", "no clips")
    path.write_text("file,labels\na.mp4,dog\n")
    assert_told(train(mavil, "data.train=clips.csv"), "no column 'path' among 'file', 'labels'")
    path.write_text("path,labels\na.mp4,dog\nb.mp4,cat\n")
    assert_told(train(mavil, "data.train=clips.csv"), "2 of 2 files are missing, e.g. a.mp4", "correct the paths")
    path.write_text("--OEZdVjE1I,30,dog barking,train\n")
    assert_told(train(mavil, "data.train=clips.csv"), "looks like vggsound", "mavil shards make")
    (tmp_path / "noise.mp4").write_bytes(b"noise")
    write_list(path, media / "test", "noise.mp4,dog")
    assert_told(
        train(mavil, "data.train=clips.csv"), f"1 of {NUM_TEST + 1} clips cannot be used", "max_skip_ratio=0.05"
    )
    (tmp_path / "empty").mkdir()
    assert_told(train(mavil, "data.train=empty"), "empty: no media files")
    assert not (tmp_path / "runs").exists()


def test_mistakes_in_labels(mavil: Mavil, media: Path, tmp_path: Path) -> None:
    write_list(tmp_path / "clips.csv", media / "train")
    # Unknown to training; look-alikes; none at all.
    write_list(tmp_path / "test.csv", media / "test", label=lambda file: f"{file.parent.name.upper()};{file.stem}")
    told = train(mavil, "data.train=clips.csv", "data.eval=test.csv")
    unknown = NUM_TEST + 2
    assert_told(
        told, f"{unknown} of its {unknown} classes are unknown to the 2 of training", "correct these labels", ", ..."
    )
    write_list(tmp_path / "test.csv", media / "test", label=lambda file: file.parent.name.upper())
    told = train(mavil, "data.train=clips.csv", "data.eval=test.csv")
    assert_told(told, "2 of its 2 classes are unknown", f"; training writes {min(class_of(0), class_of(1))!r}")
    told = train(mavil, "data.train=test.csv", "data.eval=clips.csv", "--check")
    assert "2 of its 2 classes are unknown" in told.out
    write_list(tmp_path / "none.csv", media / "test", label=lambda file: "")
    told = train(mavil, "data.train=clips.csv", "data.eval=none.csv")
    assert_told(told, f"{NUM_TEST} of {NUM_TEST} evaluation clips have no label")
    write_list(tmp_path / "some.csv", media / "test", label=lambda file: file.parent.name if file.stem != "040" else "")
    told = train(mavil, "data.train=clips.csv", "data.eval=some.csv")
    assert_told(told, f"1 of {NUM_TEST} evaluation clips have no label")
    write_list(
        tmp_path / "alike.csv", media / "test", label=lambda file: "Dog  bark" if file.stem == "040" else "dog bark"
    )
    assert_told(train(mavil, "data.train=alike.csv"), "'Dog  bark' and 'dog bark' differ only in capitals or spaces")
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_only_with_its_own_classes(mavil: Mavil, media: Path, tmp_path: Path) -> None:
    write_list(tmp_path / "clips.csv", media / "train")
    assert train(mavil, "data.train=clips.csv").code == 0
    before = (tmp_path / "runs/custom_av/classes.txt").read_text()
    write_list(tmp_path / "more.csv", media / "train", label=lambda file: f"{file.parent.name};wet")
    more = ("data.train=more.csv", "task.loss=binary_cross_entropy")
    told = train(mavil, *more, "--resume", "--force", "schedule.length=3 steps")
    assert_told(told, "its head has 2 classes, the training clips have 3: 1 new (wet)", "task.weights=runs/custom_av")
    write_list(tmp_path / "others.csv", media / "train", label=lambda file: f"{file.parent.name}2")
    told = train(mavil, "data.train=others.csv", "--resume", "schedule.length=3 steps")
    assert_told(told, "its head has 2 classes, the training clips have 2: 2 new (", "2 gone (")
    assert (tmp_path / "runs/custom_av/classes.txt").read_text() == before
    assert train(mavil, "data.train=clips.csv", "--resume").code == 0


def _pack_in_rank(folder: str, location: str) -> tuple[str | None, str]:
    os.chdir(folder)
    packing._num_workers = lambda: 0
    recipe = load_recipe(CUSTOM, [f"data.train={location}", "audio.mean=-4", "audio.std=4"])
    try:
        return with_packed_clips(recipe, []).data.train, ""
    except UserError as error:
        return None, str(error)


def test_ranks_pack_together(media: Path, tmp_path: Path) -> None:
    found = run_in_ranks(_pack_in_rank, str(tmp_path), str(media / "test"))
    assert found[0] == found[1]
    assert found[0][0] is not None
    assert read_index(tmp_path / found[0][0]).num_clips == NUM_TEST
    told = run_in_ranks(_pack_in_rank, str(tmp_path), "nowhere.csv")
    assert told[0] == told[1]
    assert "nowhere.csv" in told[0][1]
