"""Which evaluation clips are training clips: by key, by recording, by content; and what is said where nobody can know."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.commands import overlap as module
from mavil.commands.overlap import overlap_with_starts, overlap_with_training
from mavil.config import Recipe
from mavil.recipe import change_recipe, dump_recipe
from tests.data.shard_files import Members, record_bytes, sound_clip, wav_bytes, write_folder
from tests.support.recipes import tiny_recipe

VIDEO = "AbCdEfGhIj-"


def copy_of(key: str, name: str) -> Members:
    """The media file of ``name`` under another key."""
    return {"wav": wav_bytes(name), "json": record_bytes(key)}


def folder(path: Path, clips: dict[str, Members], later: dict[str, Members]) -> str:
    path.mkdir()
    return str(write_folder(path, [clips, later]))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """All media files have one size; ``both`` is in both sets, ``twin`` is ``original`` renamed."""
    train = {key: sound_clip(key) for key in ("one", "both", f"{VIDEO}_000010", "original")}
    evaluation = {key: sound_clip(key) for key in ("new", "both", f"{VIDEO}_000030")}
    evaluation["twin"] = copy_of("twin", "original")
    # Differs from it in the last byte only.
    evaluation["almost"] = {"wav": wav_bytes("original")[:-1] + b"\x00", "json": record_bytes("almost")}
    evaluation["broken"] = {"wav": wav_bytes("broken"), "json": b"{"}
    places = {
        "train": folder(tmp_path / "train", train, {"late": sound_clip("late")}),
        "evaluation": folder(tmp_path / "evaluation", evaluation, {"last": copy_of("last", "late")}),
    }
    return tiny_recipe(data=places)


def test_clips_are_found_by_key_recording_and_content(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_BYTES", 100)
    quick = overlap_with_training(recipe)
    assert (quick.num_evaluation, quick.num_train) == (7, 5)
    assert quick.keys == ("both",)
    assert quick.recordings == ((f"{VIDEO}_000030", f"{VIDEO}_000010"),)
    assert quick.contents is None
    assert quick.num_seen == 1
    assert quick.lines()[0] == "1 of 7 (14.3 %) evaluation clips are in data.train too: both"
    full = overlap_with_training(recipe, in_full=True)
    assert (full.keys, full.recordings) == (quick.keys, quick.recordings)
    assert full.contents == (("both", "both"), ("twin", "original"), ("last", "late"))
    assert full.num_seen == 3
    assert "same media file as a training clip: both, twin = original, last = late" in "\n".join(full.lines())
    assert full.to_dict()["num_same_content"] == 3


def test_a_set_against_itself_and_against_nothing_of_it(recipe: Recipe, tmp_path: Path) -> None:
    data = recipe.data.model_copy(update={"train": recipe.data.evaluation})
    found = overlap_with_training(recipe.model_copy(update={"data": data}))
    assert found.num_seen == 6  # the broken record has no key
    assert found.shards == ("000000.tar", "000001.tar")
    other = folder(tmp_path / "other", {"x": sound_clip("x", 0.07)}, {"y": sound_clip("y", 0.07)})
    data = recipe.data.model_copy(update={"train": other})
    found = overlap_with_training(recipe.model_copy(update={"data": data}), in_full=True)
    assert found.num_seen == 0
    assert found.lines() == ["none of 7 evaluation clips is in data.train (2 clips, by key, recording and content)"]


def test_what_cannot_be_read_is_said(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": str(tmp_path / "gone")})})
    found = overlap_with_training(gone)
    assert found.not_checked.startswith(f"{tmp_path / 'gone'}: no such folder of shards")
    assert found.lines()[0].startswith("overlap with data.train not checked")
    monkeypatch.setattr(module, "MOST_QUICK", 4)
    found = overlap_with_training(recipe)
    assert found.not_checked == "5 training clips are many; mavil evaluate --audit reads all"
    assert overlap_with_training(recipe, in_full=True).num_seen == 3
    (tmp_path / "train/000001.tar").write_bytes(b"")
    assert overlap_with_training(recipe, in_full=True).num_seen == 2  # what is left of it is compared


def test_clips_that_the_weights_come_from_are_found_along_the_way(recipe: Recipe, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("stage1", "stage2", "gone")}
    for name, changes in {
        "stage2": [f"data.train={recipe.data.evaluation}", f"task.weights={runs['stage1']}"],
        "stage1": ["data.train=null", f"task.weights={runs['gone']}"],
    }.items():
        runs[name].mkdir()
        (runs[name] / "config.yaml").write_text(dump_recipe(change_recipe(recipe, *changes)))
    found = overlap_with_starts(change_recipe(recipe, f"task.weights={runs['stage2']}"))
    assert list(found) == [str(run) for run in (runs["stage2"], runs["stage1"], runs["gone"])]
    assert found[str(runs["stage2"])].num_seen == 6  # all but the one whose record is broken
    assert "evaluation clips are in data.train of" in found[str(runs["stage2"])].lines()[0]
    assert "data.train is not set" in found[str(runs["stage1"])].not_checked
    assert "is not here" in found[str(runs["gone"])].not_checked
    assert overlap_with_starts(recipe) == {}
