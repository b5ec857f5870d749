"""``mavil evaluate --audit``: an honest model passes, planted defects are found and explained, shared clips are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from mavil.commands import audit as module
from mavil.commands.assemble import read_recipe
from mavil.commands.audit import Audit, audit_model
from tests.commands.conftest import Outcome
from tests.data.shard_files import media_clip, write_folder

Mavil = Callable[..., Outcome]
MakeRecipe = Callable[..., Path]
CLASSES = ("high", "low")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of different lengths, so that batches are padded; two of them lack something. In two shards."""
    made = {f"clip{i}": media_clip(f"clip{i}", 0.5 + 0.125 * (i % 4), labels=[CLASSES[i % 2]]) for i in range(6)}
    made["deaf"] = media_clip("deaf", 0.75, labels=["high"], sound=False)
    made["blind"] = media_clip("blind", 0.75, labels=["low"], picture=False)
    names = list(made)
    parts = [{name: made[name] for name in names[:4]}, {name: made[name] for name in names[4:]}]
    return write_folder(tmp_path_factory.mktemp("clips"), parts)


@pytest.fixture
def run(mavil: Mavil, recipe: MakeRecipe, clips: Path, tmp_path: Path) -> Path:
    """A classifier of a few steps."""
    data = {"train": str(clips), "evaluation": str(clips), "num_workers": 0, "missing_modality": "keep"}
    assert mavil("train", recipe("both", task={"kind": "classify"}, data=data)).code == 0
    return tmp_path / "runs/both"


def results(audit: Audit) -> dict[str, bool | None]:
    return {check.name: check.passed for check in audit.checks}


def failed(audit: Audit) -> list[str]:
    return [check.name for check in audit.checks if check.passed is False and "training clip" not in check.name]


class BatchNormHead(nn.Module):
    """What a user may add: it normalises over the batch, in evaluation too."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.norm = head, nn.BatchNorm1d(2)

    def forward(self, values: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.head(values))
        return normed


def test_a_model_is_audited(mavil: Mavil, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(run, ["trainer.device_batch=5"])
    audit = audit_model(run, recipe, "newest", None, 64)
    assert audit.num_clips == 8
    assert failed(audit) == []
    assert results(audit)["no evaluation clip is a training clip"] is False
    assert results(audit)["others without sound or picture"] is True
    assert audit.overlap.num_seen == 8
    moved = [check.movement for check in audit.checks if check.movement is not None]
    assert len(moved) == 12
    assert max(moved) < audit.reference.tolerance
    assert audit.reference.spread > 0
    monkeypatch.setattr(module, "NUM_WORKERS", 0)  # processes take seconds to start
    # The command's own options; an evaluation in the same folder keeps the audit, and the other way round.
    for words in (("--audit", "--audit-clips", 3), ("--bootstrap", 0), ("--audit", "--audit-clips", 2)):
        found = mavil("evaluate", run, *words, "--out", "both")
        assert found.code == (3 if "--audit" in words else 0), found.err  # all clips are training clips
        assert json.loads(Path("both/audit.json").read_text())["num_clips"] == (2 if 2 in words else 3)
    assert json.loads(Path("both/metrics.json").read_text())["num_clips"] == 8
    # The planted defects: a front end that normalises over the batch, ...
    found = mavil("evaluate", run, "trainer.device_batch=5", "audio.batch_statistics=evaluation", "--audit")
    assert found.code == 3, found.err
    assert "train and evaluate with audio.batch_statistics=never" in found.out
    assert "checks failed: the numbers of this run cannot be trusted" in found.out
    stored = json.loads((run / "audit.json").read_text())
    bad = [check["name"] for check in stored["checks"] if check["result"] == "failed"]
    assert {"batches of 1", "batches of 3", "padded by a longer clip", "the other half silent and black"} <= set(bad)
    assert "the same again" not in bad
    # ... and a head that does, in training mode.
    build = module.task_for

    def with_batch_norm(*arguments: object) -> object:
        task = build(*arguments)  # type: ignore[arg-type]
        head = task.model.get_submodule("head")
        load = module.load_parts

        def after_loading(*more: object) -> object:
            found = load(*more)  # type: ignore[arg-type]
            task.model.head = BatchNormHead(head)
            return found

        monkeypatch.setattr(module, "load_parts", after_loading)
        monkeypatch.setattr(nn.BatchNorm1d, "train", lambda self, mode=True: self)  # it stays in training mode
        return task

    monkeypatch.setattr(module, "task_for", with_batch_norm)
    audit = audit_model(run, read_recipe(run, ["trainer.device_batch=4"]), "newest", None, 64)
    assert {"batches of 1", "batches of 3", "the other half silent and black"} <= set(failed(audit))
    assert next(check for check in audit.checks if check.name == "batches of 1").detail.startswith(
        "the model fails: Exp"
    )
    state = next(check for check in audit.checks if check.name.startswith("evaluation mode"))
    assert state.passed is False
    assert "1 modules are in training mode, first 'head.norm'" in state.detail
    assert "changed 3 tensors of the model, first 'head.norm.running_mean'" in state.detail
