"""Checkpoints: complete or absent, checked before they are read, and clear about what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mavil.engine import checkpoint as room
from mavil.engine.checkpoint import (
    Checkpoint,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_state,
    load_weights,
    save_checkpoint,
)
from mavil.engine.runtime import random_state
from mavil.structs import TrainState, UserError


def save(run: Path, step: int, keep: int = 5, position: Any = None) -> Path:
    """A checkpoint of a small model whose weights are all ``step``."""
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, step)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = Checkpoint(
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        state=TrainState(step, 10 * step, position or {"epoch": 1, "shards": ["a", "b"]}),
        random=random_state(torch.device("cpu")),
        averages={"loss/total": [1.5, 2.0]},
    )
    return save_checkpoint(run, content, {"encoder": model}, keep)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: small\n")
    path = save(tmp_path, 7)
    state = random_state(torch.device("cpu"))
    loaded = load_checkpoint(path)
    assert loaded.state == TrainState(7, 70, {"epoch": 1, "shards": ["a", "b"]})
    assert loaded.averages == {"loss/total": [1.5, 2.0]}
    assert loaded.random["python"] == state["python"]
    assert torch.equal(loaded.random["torch"], state["torch"])
    assert loaded.source == path
    assert torch.equal(load_weights(path)["encoder"]["weight"], loaded.model["weight"])
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["ranks"]) == (1, 7, 1)
    assert manifest["recipe"]["name"] == "small"
    assert manifest["files"]["state.pt"]["bytes"] == (path / "state.pt").stat().st_size
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "state.pt", "weights.pt"]


@pytest.mark.parametrize("place", ["torch.save", "os.rename"])
def test_an_interrupted_save_leaves_the_previous_checkpoint(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while a file is written, and just before the folder gets its name."""
    save(tmp_path, 1)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"{room.__name__}.{place}", stop)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000001"]
    assert load_checkpoint(checkpoints(tmp_path)[0]).state.step == 1
    assert (tmp_path / "checkpoints" / ".step_00000002.partial").exists()
    save(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000001", "step_00000002"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"{room.__name__}.torch.save", fail)
    with pytest.raises(UserError, match=r"step_00000002: .*No space left.*earlier checkpoints are untouched"):
        save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_00000001"


@pytest.mark.parametrize("name", ["state.pt", "weights.pt"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [("cut", "bytes instead of"), ("flip", "differs from the checksum"), ("remove", "is missing")],
)
def test_a_damaged_file_is_named_with_a_way_out(tmp_path: Path, name: str, damage: str, expected: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    content = bytearray((path / name).read_bytes())
    if damage == "remove":
        (path / name).unlink()
    elif damage == "cut":
        (path / name).write_bytes(content[:-7])
    else:
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{expected}.*use another one by removing it.*step_00000001"):
        load_checkpoint(path) if name == "state.pt" else load_weights(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str | None) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").unlink() if content is None else (path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json .*damaged; no other one is left"):
        load_checkpoint(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UserError, match="format 99, this version reads format 1"):
        load_checkpoint(path)


def test_a_file_that_unpickles_code_is_not_run(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({"encoder": Path("anything")}, path / "weights.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["weights.pt"] = {
        "bytes": (path / "weights.pt").stat().st_size,
        "sha256": room._sha256(path / "weights.pt"),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_weights(path)


def test_weights_need_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        load_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_weights(tmp_path)


def test_a_position_that_could_not_be_read_back_is_refused_when_saving(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\.state\.position\.shard is a .*numpy"):
        save(tmp_path, 1, position={"shard": np.int64(3)})
    assert latest_checkpoint(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 99_999_999, 100_000_000):
        save(tmp_path, step, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step_99999999", "step_100000000"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1, position={"n": 1})
    path = save(tmp_path, 1, position={"n": 2})
    assert load_checkpoint(path).state.position == {"n": 2}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_state_that_does_not_fit_says_where() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)).state_dict()
    state["2.weight"] = state.pop("1.weight")
    with pytest.raises(UserError) as caught:
        load_state(model, state, "runs/x")
    message = str(caught.value)
    assert message.startswith("runs/x does not fit this model")
    assert "1 of another shape: 0.weight is (2, 4), expected (2, 3)" in message
    assert "1 missing: 1.weight" in message
    assert "1 unknown here: 2.weight" in message
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    load_state(model, {name: value + 1 for name, value in before.items()}, "runs/x")
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"] + 1)
