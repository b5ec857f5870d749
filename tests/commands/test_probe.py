"""``mavil probe``: what it measures, what it keeps on disk, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from mavil.commands import packing, probe_progress
from mavil.commands.assemble import read_recipe
from mavil.commands.probe_clips import padded_scores
from mavil.commands.probe_progress import Pieces
from mavil.commands.probe_results import print_results
from mavil.evaluation.frozen.fitting import Budget
from mavil.evaluation.metrics import classification_metrics
from mavil.evaluation.predictions import read_predictions
from mavil.recipe import change_recipe
from tests.commands.conftest import Outcome
from tests.data.shard_files import media_clip, write_folder
from tests.support.random_runs import tone_clip, write_run
from tests.support.recipes import tiny_recipe

Mavil = Callable[..., Outcome]
Labels = Sequence[str]
CLASSES = ("low", "middle", "high")
QUIET = {"num_workers": 0}


def tones(folder: Path, name: str, number: int, labels_of: Callable[[int], Labels], **more: Any) -> Path:
    """A folder of shards of tones; every four neighbours are of one speaker."""
    where = folder / name
    where.mkdir()
    clips = {
        f"{name}{i:02d}": tone_clip(f"{name}{i:02d}", labels_of(i), speaker=f"{name}{i // 4}", take=str(i), **more)
        for i in range(number)
    }
    return write_folder(where, [clips])


def by_turns(number: int) -> Labels:
    return [CLASSES[number // 4 % 3]]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train``, ``valid`` and ``test``: speakers with four clips of one class each."""
    folder = tmp_path_factory.mktemp("heard")
    for name, number in (("train", 48), ("valid", 12), ("test", 24)):
        tones(folder, name, number, by_turns)
    return folder


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that are trained for a moment and not for seconds."""
    for kind in ("linear", "attentive"):
        monkeypatch.setattr(f"mavil.evaluation.frozen.{kind}.BUDGET", Budget(48, 1, least_steps=25))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An audio run with random weights: enough to tell tones."""
    trainer = {"device": "cpu", "num_threads": 1, "device_batch": 16}
    audio = {**tiny_recipe().audio.model_dump(), "mean": -4.0, "std": 4.0}  # type: ignore[union-attr]
    task = {"kind": "pretrain", "contrast": None}
    parts = {"audio": audio, "video": None, "fusion": None, "task": task, "trainer": trainer, "data": QUIET}
    return write_run(tmp_path / "run", tiny_recipe(**parts))


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "probe/probe.json").read_text())
    return found


def splits(folder: Path, *more: object) -> tuple[object, ...]:
    return ("--train", folder / "train", "--evaluation", folder / "test", *more)


def test_all_kinds_tell_tones_and_say_how_they_were_measured(mavil: Mavil, run: Path, heard: Path) -> None:
    words = ("probe", run, *splits(heard, "--kind", "all", "--group-field", "speaker", "--seeds", 2))
    done = mavil(*words)
    assert done.code == 0, done.err
    found = result(run)
    rows = {row["kind"]: row for row in found["results"]}
    assert list(rows) == ["linear", "attentive", "knn"]
    for row in rows.values():
        assert (row["encoder"], row["shown"], row["metric"]) == ("trained", "audio", "accuracy")
        assert row["chance"] == pytest.approx(1 / 3)
        seeds = [one["metrics"]["accuracy"] for one in row["seeds"]]
        assert row["mean"] == pytest.approx(np.mean(seeds))
        assert row["deviation_over_seeds"] == pytest.approx(np.std(seeds, ddof=1))
        assert row["interval"][0] <= seeds[0] <= row["interval"][1]
        assert row["mean"] > 0.7
        for one in row["seeds"]:
            assert (one["num_train"] + one["num_validation"], one["metrics"]["num_clips"]) == (48, 24)
            # Four clips of every speaker.
            assert one["num_validation"] % 4 == 0
    assert [len(row["seeds"][0]["trials"]) for row in rows.values()] == [12, 4, 5]
    assert (found["clips"]["train"]["num_used"], found["clips"]["evaluation"]["num_used"]) == (48, 24)
    assert (found["num_shared_keys"], found["num_of_shared_groups"]) == (0, 0)
    with open(run / "probe/probe.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == pytest.approx([row["mean"] for row in rows.values()], abs=1e-6)
    kept = read_predictions(run / "probe/predictions-linear.npz")
    assert kept.classes == tuple(sorted(CLASSES))
    again = classification_metrics(kept.scores["audio"], kept.targets, False)
    assert again["accuracy"] == rows["linear"]["seeds"][0]["metrics"]["accuracy"]
    # A second time, from what is kept: the same numbers, and nothing is decoded.
    before = (run / "probe/probe.json").read_text()
    again_done = mavil(*words)
    assert again_done.code == 0, again_done.err
    assert "encoded in" not in again_done.out
    assert (run / "probe/probe.json").read_text() == before


def test_features_are_made_anew_when_the_weights_or_clips_or_choices_change(
    mavil: Mavil, run: Path, heard: Path, tmp_path: Path
) -> None:
    def made(train: Path, *more: object) -> list[str]:
        options = ("--kind", "knn", "--seeds", 1, "--validation", heard / "valid", *more)
        done = mavil("probe", run, "--train", train, "--evaluation", heard / "test", *options)
        assert done.code == 0, done.err
        lines = " ".join(done.out.split()).split("trained: features of ")
        return [line.partition(":")[0] for line in lines if "encoded in" in line]

    everything = ["train", "validation", "evaluation"]
    own = tones(tmp_path, "train", 12, by_turns)
    assert made(own) == everything
    assert made(own) == []
    assert made(own, "--layer", "1") == everything
    assert made(own, "--pooling", "mean+cls") == everything
    assert made(own, f"audio.mean={-3.5}") == everything
    assert made(own, "--kind", "attentive") == everything
    # Other media under the same names, packed again.
    for path in own.iterdir():
        path.unlink()
    own.rmdir()
    tones(tmp_path, "train", 12, lambda i: by_turns(i + 4))
    assert made(own) == ["train"]
    write_run(run, read_recipe(run, []), step=7, seed=9)
    assert made(own) == everything
    # Nothing is kept, nor looked at, without a cache.
    entries = sorted(path.name for path in (run / "features").iterdir())
    assert made(own, "--no-cache") == everything
    assert sorted(path.name for path in (run / "features").iterdir()) == entries
    assert not list(run.glob(".features*"))


def test_labels_of_the_evaluated_clips_change_nothing_but_the_score(
    mavil: Mavil, run: Path, heard: Path, tmp_path: Path
) -> None:
    """The clips' sound is the same; only what they are said to be differs."""
    where = tmp_path / "other"
    where.mkdir()
    clips = {}
    for i in range(24):
        key = f"test{i:02d}"
        members = dict(tone_clip(key, by_turns(i), speaker=f"train{i // 4}", take=str(i)))
        record = json.loads(members["json"])
        record |= {"key": f"train{i:02d}", "labels": ["low"] if i < 12 else ["high"]}
        clips[record["key"]] = {**members, "json": json.dumps(record).encode()}
    write_folder(where, [clips])
    found, group = [], ("--group-field", "speaker")
    for test in (heard / "test", where):
        done = mavil("probe", run, "--train", heard / "train", "--evaluation", test, "--seeds", 1, *group)
        assert done.code == 0, done.err
        kept = read_predictions(run / "probe/predictions-linear.npz")
        found.append((kept.scores["audio"], result(run)["results"][0]["seeds"][0]))
    (scores, first), (others, second) = found
    assert torch.equal(scores, others)
    assert first["chosen"] == second["chosen"]
    assert first["trials"] == second["trials"]
    assert first["metrics"]["accuracy"] > second["metrics"]["accuracy"]
    # What looks like a leak is told.
    assert (result(run)["num_shared_keys"], result(run)["num_of_shared_groups"]) == (24, 24)
    out = " ".join(done.out.split())
    assert "24 evaluated clips are called like a training or validation clip" in out
    assert "24 evaluated clips are of a speaker that training or validation clips are also of" in out


def test_a_control_has_weights_that_nobody_trained(mavil: Mavil, run: Path, heard: Path) -> None:
    done = mavil("probe", run, *splits(heard, "--grid", "none", "--control", "--seeds", 1))
    assert done.code == 0, done.err
    found = result(run)
    trained, control = found["results"]
    assert (trained["encoder"], control["encoder"]) == ("trained", "random weights")
    assert set(found["weights"]) == {"trained", "random weights"}
    assert len(set(found["weights"].values())) == 2
    own, others = (read_predictions(run / f"probe/predictions-linear{name}.npz") for name in ("", "-control"))
    assert own.facts["encoder"] == "trained"
    assert not torch.equal(own.scores["audio"], others.scores["audio"])


def test_several_labels_classes_never_seen_and_clips_left_out(mavil: Mavil, run: Path, tmp_path: Path) -> None:
    tones(tmp_path, "train", 24, lambda i: [CLASSES[i % 3], *(["high"] if i % 3 == 0 else [])])
    tones(tmp_path, "test", 12, lambda i: ["highest"] if i == 0 else [] if i == 1 else [CLASSES[i % 3]])
    done = mavil("probe", run, *splits(tmp_path, "--seeds", 1, "--grid", "none"))
    assert done.code == 0, done.err
    out = " ".join(done.out.split())
    assert "1 evaluated clips are of 1 classes without a training clip, e.g. 'highest': they count as errors" in out
    assert "--evaluation: 11 clips used, others left out (without_label 1)" in out
    found = result(run)
    assert found["unseen_classes"] == {"highest": 1}
    assert found["results"][0]["metric"] == "map"
    metrics = found["results"][0]["seeds"][0]["metrics"]
    assert (metrics["num_clips"], metrics["num_classes_scored"]) == (11, 4)
    # Constant, hence no better than the share of its clips.
    assert metrics["map"] <= (3 + 1 / 11) / 4 + 1e-6


def test_a_class_that_nobody_could_learn_is_never_the_best() -> None:
    padded = padded_scores(torch.tensor([[-3.0, -7.0], [2.0, 0.0]]), 2)
    assert padded.tolist() == [[-3.0, -7.0, -8.0, -8.0], [2.0, 0.0, -8.0, -8.0]]


def test_modalities_are_compared_on_the_same_clips(mavil: Mavil, tmp_path: Path) -> None:
    def clips(name: str, count: int) -> Path:
        (tmp_path / name).mkdir()
        made = {
            f"{name}{i}": media_clip(f"{name}{i}", 1.0, labels=[CLASSES[i % 2]], sound=i != 0, picture=i != 1)
            for i in range(count)
        }
        return write_folder(tmp_path / name, [made])

    clips("train", 10)
    clips("test", 6)
    audio = {**tiny_recipe().audio.model_dump(), "mean": -4.0, "std": 4.0}  # type: ignore[union-attr]
    trainer = {"device": "cpu", "num_threads": 1, "device_batch": 4}
    task = {"kind": "classify"}
    run = write_run(tmp_path / "run", tiny_recipe(audio=audio, task=task, trainer=trainer, data=QUIET))
    done = mavil("probe", run, *splits(tmp_path, "--grid", "none", "--seeds", 1, "--kind", "all"))
    assert done.code == 0, done.err
    found = result(run)
    assert found["clips"]["evaluation"]["left_out"] == {"without_audio": 1, "without_video": 1}
    assert [row["shown"] for row in found["results"]] == [
        m for m in ("audio", "video", "audio+video") for _ in range(3)
    ]
    assert {row["seeds"][0]["metrics"]["num_clips"] for row in found["results"]} == {4.0}
    assert set(read_predictions(run / "probe/predictions-knn.npz").scores) == {"audio", "video", "audio+video"}
    # One modality by itself is probed on all clips that have it; the others are unusable.
    words = ("probe", run, "data.max_skip_ratio=0.5", *splits(tmp_path, "--modality", "audio", "--kind", "knn"))
    done = mavil(*words)
    assert done.code == 0, done.err
    found = result(run)
    assert found["clips"]["evaluation"]["left_out"] == {"no_audio": 1}
    assert [(row["shown"], row["seeds"][0]["metrics"]["num_clips"]) for row in found["results"]] == [("audio", 5.0)]


def test_it_is_told_what_the_encoder_has_seen_of_the_evaluated_clips(
    mavil: Mavil, run: Path, heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run itself, which learned from ``valid``, and by the one it was begun from, which learned from ``test``."""
    recipe = read_recipe(run, [])
    start = write_run(tmp_path / "start", change_recipe(recipe, f"data.train={heard / 'test'}"))
    write_run(run, change_recipe(recipe, f"data.train={heard / 'valid'}", f"task.weights={start}"))
    monkeypatch.setattr(probe_progress, "SECONDS_BETWEEN_LINES", 0.0)
    done = mavil("probe", run, *splits(heard, "--kind", "knn", "--seeds", 2))
    assert done.code == 0, done.err
    out = done.out.splitlines()
    assert f"none of 24 evaluation clips is in data.train of {run} (12 clips, by key and recording)" in out
    names = ", ".join(f"test{i:02d}" for i in range(5))
    assert f"24 of 24 (100.0 %) evaluation clips are in data.train of {start} too: {names} ..." in out
    found = result(run)
    assert (found["overlap"]["num_train"], found["overlap"]["num_same_key"]) == (12, 0)
    assert {one: told["num_same_key"] for one, told in found["overlap_of_starts"].items()} == {str(start): 24}
    # Nobody looks at bars here: lines, and how long it took.
    assert "trained: features of train: 16 of 48" in out
    # Two seeds, each with the grid and the chosen point.
    steps = [line for line in out if line.startswith("trained, audio, knn: ") and "of 100" in line]
    assert steps == [f"trained, audio, knn: {percent} of 100" for percent in (25, 50, 75)]
    assert any(line.startswith("trained, audio, knn: 2 seeds in ") for line in out)


def test_a_list_or_a_folder_of_media_is_packed_and_probed(
    mavil: Mavil, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_num_workers", lambda: 0)

    def media(name: str, number: int) -> Path:
        """A folder of WAV files with a folder per class."""
        for i in range(number):
            place = tmp_path / name / CLASSES[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}{i:02d}.wav").write_bytes(tone_clip(f"{name}{i:02d}", [CLASSES[i % 3]])["wav"])
        return tmp_path / name

    def listed(name: str, number: int) -> Path:
        rows = [
            f"{file.relative_to(tmp_path)},{file.parent.name}" for file in sorted(media(name, number).rglob("*.wav"))
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
        return tmp_path / f"{name}.csv"

    places = ("--train", listed("train", 12), "--validation", listed("valid", 6), "--evaluation", media("test", 9))
    done = mavil("probe", run, *places, "--kind", "knn", "--seeds", 1)
    assert done.code == 0, done.err
    found = result(run)
    assert {split: clips["num_used"] for split, clips in found["clips"].items()} == {
        **{"train": 12, "validation": 6, "evaluation": 9}
    }
    assert [clips["shards"].split("-")[0] for clips in found["clips"].values()] == [
        f"shards/auto/{name}" for name in ("train", "valid", "test")
    ]
    assert found["validation"] == "given"
    (row,) = found["results"]
    assert (row["metric"], row["chance"]) == ("accuracy", pytest.approx(1 / 3))
    assert row["seeds"][0]["num_train"] == 12


def test_pieces_are_told_as_percent_of_all_of_them() -> None:
    told: list[tuple[int, int]] = []
    pieces = Pieces(2, lambda done, total: told.append((done, total)))
    for done, total in ((1, 4), (4, 4), (1, 1000), (500, 1000), (1000, 1000)):
        pieces(done, total)
    assert told == [(12, 100), (50, 100), (75, 100), (100, 100)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--modality", "both"), "--modality both: the run tiny knows audio only, no video: choose audio"),
        (("--layer", "7"), "--layer 7: the audio encoder has 2 blocks"),
        (("--layer", "first"), "--layer first: write last, the number of a block, or e.g. mean_of_last:4"),
        (("--group-field", "town"), "no such metadata field (fields: speaker, take): name one that every clip has"),
        (("--label-field", "town"), "no clip has a metadata field 'town' (fields: speaker, take)"),
        (("--evaluation", "{}/train"), "shard 000000.tar is also in --train"),
        (("--train", "{}/one"), "all labelled clips are of one class ('low')"),
        (
            ("--train", "{}/none"),
            "no clip has a label: name a metadata field with --label-field (fields: speaker, take)",
        ),
        (("--validation", "{}/strange"), "class 'highest' has no training clip (1 such classes)"),
        (("--checkpoint", "99"), "has no checkpoint '99'"),
    ],
)
def test_what_no_probe_can_be_made_of_is_told_in_one_line(
    mavil: Mavil, run: Path, heard: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    tones(tmp_path, "one", 4, lambda i: ["low"])
    tones(tmp_path, "none", 4, lambda i: [])
    tones(tmp_path, "strange", 4, lambda i: ["highest"])
    places = {"--train": str(heard / "train"), "--evaluation": str(heard / "test")}
    name, value = options
    where = heard if "train" in value else tmp_path
    (run / "probe").mkdir()
    (run / "probe/probe.json").write_text("old")
    words = [word for pair in {**places, name: value.format(where)}.items() for word in pair]
    done = mavil("probe", run, *words)
    assert done.code == 2, done.out
    assert told in " ".join(done.err.split())
    assert (run / "probe/probe.json").read_text() == "old"


def test_the_table_fits_a_terminal() -> None:
    row = SimpleNamespace(
        encoder="random weights", kind="attentive", shown="audio+video", metric="accuracy", mean=0.6931, deviation=0.0304,
        interval=(0.6053, 0.8158), chance=0.1053,
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO(), record=True)
    print_results(console, [row], "a run on some clips", 3)  # type: ignore[list-item]
    out = console.export_text()
    assert "a run on some clips: accuracy" in out
    assert "…" not in out
    for cell in ("attentive", "audio+video", "0.693 ± 0.030", "0.605–0.816", "0.105"):
        assert f" {cell} " in out
