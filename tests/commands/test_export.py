"""``mavil export``: from a run to a folder that others load, with all the run knows of itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mavil as package
from mavil.commands import export as export_command
from mavil.commands import export_facts
from mavil.commands.demo import Results, export_model
from mavil.commands.demo_clips import ClipSets
from mavil.commands.export_facts import exported_run, starts_of
from mavil.config import Recipe
from mavil.engine.checkpoints.reading import load_weights
from mavil.export import hub
from mavil.export.folder import read_export
from mavil.recipe import change_recipe, load_recipe
from mavil.structs import UserError
from tests.commands.conftest import Outcome
from tests.support.random_runs import write_run
from tests.support.recipes import tiny_recipe

Mavil = Callable[..., Outcome]
STATISTICS = ("audio.mean=-4.0", "audio.std=4.5")


def settings(*changes: str, **parts: Any) -> Recipe:
    return change_recipe(tiny_recipe(**parts), *STATISTICS, *changes)


def trained(run: Path, *changes: str, log: str = "", **parts: Any) -> Path:
    """A run folder as training leaves it."""
    write_run(run, settings(*changes, **parts), step=3)
    (run / "environment.json").write_text("[]")
    (run / "log.rank0.txt").write_text(log)
    return run


@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_the_encoders_leave_and_embed_as_they_did(mavil: Mavil, tmp_path: Path, task: str) -> None:
    run = trained(tmp_path / "run", task={"kind": task})
    seen = mavil("export", run, "out")
    assert seen.code == 0, seen.err
    assert 'm = mavil.load("out")' in seen.out
    weights = load_weights(run)
    parts = read_export(tmp_path / "out").parts
    assert list(parts) == ["audio_encoder", "video_encoder", "fusion"]
    assert all(torch.equal(parts[part][name], weights[part][name]) for part in parts for name in weights[part])
    sound = torch.sin(torch.arange(12_000) / 5)
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 3), dtype=np.uint8)
    models = [package.load(run, device="cpu"), package.load(tmp_path / "out", device="cpu")]
    own, other = [
        (m.embed_audio(sound, 16_000), m.embed_video(frames, 4.0), m.embed((sound, frames), 16_000, 4.0))
        for m in models
    ]
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_a_checkpoint_is_chosen(mavil: Mavil, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", settings(), step=3)
    other = write_run(tmp_path / "other", settings(), step=7, seed=5)
    (other / "checkpoints" / "step_00000007").rename(run / "checkpoints" / "step_00000007")
    (run / "checkpoints" / "best").symlink_to("step_00000003")
    for which, step in {"newest": 7, "3": 3, "best": 3}.items():
        assert mavil("export", run, which, "--checkpoint", which).code == 0
        exported = read_export(tmp_path / which)
        weights = load_weights(run / "checkpoints" / f"step_0000000{step}")
        assert exported.about["step"] == step
        assert torch.equal(
            exported.parts["fusion"]["blocks.0.mlp.fc1.weight"], weights["fusion"]["blocks.0.mlp.fc1.weight"]
        )


def test_the_card_has_what_the_run_has_measured(mavil: Mavil, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "data.evaluation=/somewhere/else/shards/test")
    (run / "evaluation").mkdir()
    facts = {"data": "/somewhere/else/shards/test", "num_clips": 79, "step": 3, "checkpoint": "newest"}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(facts))
    (run / "evaluation" / "metrics.csv").write_text(
        "shown,metric,value,low,high\naudio,map,0.5,0.25,0.75\naudio,chance_map,0.125,,\naudio,labels/all/map,0.9,,\n"
    )
    (run / "retrieval").mkdir()
    found = {
        "data": "/somewhere/else/shards/gallery",
        "checkpoint": "3",
        "retrieval": {"all": {"a_to_v": {"median_rank": 2.5}}},
    }
    overlap = {"num_evaluation": 79, "num_same_key": 1, "same_key": ["somewhere.mp4"], "not_checked": None}
    (run / "retrieval" / "retrieval.json").write_text(json.dumps({**found, "overlap": overlap}))
    assert mavil("export", run, "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| audio | map | 0.5 | 0.25 to 0.75 | 0.125 |" in card
    assert "on shards/test, N = 79 clips, checkpoint of step 3" in card
    assert "0.9" not in card  # another protocol
    assert "on shards/gallery, checkpoint 3, percent" in card
    assert "| all |  | a to v |  |  |  |  | 2.5 |  |" in card
    assert "Of these 79 clips 1 are in its training set" in card
    assert "somewhere" not in card + (tmp_path / "out" / "config.json").read_text()


def test_licences_come_down_the_chain_of_starts(tmp_path: Path) -> None:
    file = "/downloads/first.pth"
    told = f"12:00 audio_encoder: 150 of 150 tensors from {file} (Audio-MAE)\n"
    stage1 = trained(tmp_path / "stage1", f"task.start.audio={file}", log=told)
    stage2 = trained(tmp_path / "stage2", f"task.teacher.run={stage1}")
    tuned = trained(tmp_path / "tuned", task={"kind": "classify", "weights": str(stage2)})
    starts = exported_run(tuned).about["starts"]
    assert [(s["kind"], s["name"], s["role"]) for s in starts] == [
        ("run", "stage2", "weights"),
        ("run", "stage1", "teacher"),
        ("file", "first.pth", "audio"),
    ]
    assert starts[-1]["layout"] == "audio_mae"
    (stage1 / "log.rank0.txt").unlink()
    assert exported_run(tuned).about["starts"][-1]["layout"] is None
    stage1.rename(tmp_path / "elsewhere")
    assert exported_run(tuned).about["starts"][-1] == {
        **{"kind": "run", "name": "stage1", "role": "teacher", "found": False, "data": None}
    }


def test_a_converted_run_has_the_licence_of_its_file(tmp_path: Path) -> None:
    recipe = settings("name=audio_mae", "video=null", "fusion=null", "task.contrast=null")
    converted = write_run(tmp_path / "converted", recipe)
    assert [start["layout"] for start in starts_of(converted, recipe, 0) or []] == ["audio_mae"]
    tuned = trained(tmp_path / "tuned", f"task.weights={converted}")
    starts = exported_run(tuned).about["starts"]
    assert [(start["kind"], start.get("layout")) for start in starts] == [("run", None), ("file", "audio_mae")]
    assert starts_of(converted, settings(), 0) is None  # no record of a training, and no layout either
    plain = write_run(tmp_path / "plain", settings())
    starts = exported_run(trained(tmp_path / "second", f"task.weights={plain}")).about["starts"]
    assert [(start["kind"], start["found"]) for start in starts] == [("run", False)]


def test_clips_are_counted_where_the_shards_are(tmp_path: Path, shards: Path) -> None:
    data = exported_run(trained(tmp_path / "run", f"data.train={shards / 'train'}")).about["data"]
    assert data == {"train": {"name": f"{shards.name}/train", "clips": 24}, "evaluation": None}
    gone = exported_run(trained(tmp_path / "gone", "data.train=https://example.org/a/b?token=secret")).about["data"]
    assert gone["train"] == {"name": "a/b", "clips": None}


def test_a_push_uploads_what_was_written(mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[tuple[Path, str, bool]] = []
    monkeypatch.setattr(
        hub, "push_folder", lambda folder, name, private: pushed.append((folder, name, private)) or "URL"
    )
    seen = mavil("export", trained(tmp_path / "run"), "out", "--push", "owner/name", "--private", "--licence", "mit")
    assert seen.code == 0, seen.err
    assert pushed == [(Path("out"), "owner/name", True)]
    assert "uploaded: URL" in seen.out
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'mavil.load("owner/name")' in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"


def test_mistakes_are_told_in_a_line_before_anything_is_read(
    mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run")
    assert mavil("export", run, "out").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file.pth").write_bytes(b"")
    monkeypatch.setattr(export_facts, "load_weights", lambda *_: pytest.fail("weights were read first"))
    for arguments, told in [
        ((run, "out"), "--force"),
        ((run, "mine", "--force"), "not an export"),
        ((run, "mine/thesis.txt"), "is a file"),
        ((run, "new", "--licence", "My Licence\n"), "as the Hub does"),
        ((run, "new", "--private"), "--private goes with --push"),
        ((run, "new", "--push", "name"), "owner/name"),
        ((run, "new", "--push", "https://x/y/z"), "owner/name"),
        (("nowhere", "new"), "no run"),
        (("file.pth", "new"), "mavil convert"),
    ]:
        seen = mavil("export", *arguments)
        assert (seen.code, seen.err.count("\n")) == (2, 1), (arguments, seen.err)
        assert told in seen.err, seen.err
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_is_not_there_is_told(mavil: Mavil, tmp_path: Path) -> None:
    seen = mavil("export", trained(tmp_path / "run"), "out", "--checkpoint", "9")
    assert (seen.code, seen.err.count("\n")) == (2, 1)
    assert "has no checkpoint '9'" in seen.err


def test_statistics_must_be_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_recipe())
    with pytest.raises(UserError, match=r"audio\.mean and audio\.std"):
        exported_run(run)
    assert load_recipe(run / "config.yaml").audio is not None


def test_torch_hub_finds_the_entry(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    before = list(sys.path)
    model = torch.hub.load(str(Path(__file__).parents[2]), "mavil", str(run), source="local", output="numpy")
    assert sys.path == before
    sound = torch.sin(torch.arange(12_000) / 5)
    found = model.embed_audio(sound, 16_000)
    assert isinstance(found, np.ndarray)  # the further arguments reach mavil.load
    assert np.array_equal(found, package.load(run).embed_audio(sound, 16_000).numpy())


def test_the_demo_leaves_a_model_that_loads(tmp_path: Path, shards: Path) -> None:
    trained(tmp_path / "stage1")
    trained(tmp_path / "stage2", f"task.teacher.run={tmp_path / 'stage1'}")
    ways = {"audio_to_video": {"recall_at_1_percent": 12.5, "gallery_size": 32.0}}
    results = Results(retrieval={"stage1": {}, "stage2": {"whole gallery": ways}})
    clips = ClipSets(shards / "train", shards / "gallery", "synthetic", seed=0)
    lines = export_model(tmp_path, results, clips)
    found: dict[str, Any] = {}
    exec(lines.rpartition("\n")[0], found)  # the third line reads a file that is not here
    assert found["m"].modalities == ("audio", "video")
    assert lines.splitlines()[1] == f'm = mavil.load("{tmp_path / "export"}")'
    assert "| whole gallery | 32 | audio to video | 12.5 |" in (tmp_path / "export" / "README.md").read_text()
    assert results.summary(clips, [], 0)["export"] == "export"


def test_every_format_is_asked_for_by_its_option(mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(export_command, "check_formats", lambda _, formats: asked.append(tuple(formats)))
    monkeypatch.setattr(
        export_command, "write_formats", lambda folder, formats: [f"{folder.name}: {', '.join(formats)}"]
    )
    run = trained(tmp_path / "run")
    for option in ("timm", "transformers", "onnx", "torch-export", "compiled"):
        name = option.replace("-", "_")
        assert f"out: {name}\n" in mavil("export", run, "out", "--force", f"--{option}").out
    assert asked == [("timm",), ("transformers",), ("onnx",), ("torch_export",), ("compiled",)]


def test_a_format_that_cannot_be_leaves_the_earlier_export(
    mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("this cannot be a model of timm")

    run = trained(tmp_path / "run")
    assert mavil("export", run, "out").code == 0
    before = (tmp_path / "out" / "config.json").stat().st_ino
    monkeypatch.setattr(export_command, "check_formats", refuse)
    assert mavil("export", run, "out", "--force", "--timm").code == 2
    assert (tmp_path / "out" / "config.json").stat().st_ino == before
