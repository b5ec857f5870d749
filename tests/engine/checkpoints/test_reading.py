"""Checkpoints: whole or not chosen, checked before they are read, and clear about what does not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mavil.engine.checkpoints import folder as checkpoint_folder
from mavil.engine.checkpoints.folder import checkpoints, sealed
from mavil.engine.checkpoints.reading import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_state,
    load_weights,
    newest_checkpoint,
)
from mavil.engine.checkpoints.saving import Saver
from mavil.engine.process.runtime import random_state
from mavil.structs import TrainState, UserError
from tests.support.ranks import run_in_ranks

FILES = ["averaged.pt", "manifest.json", "model.pt", "optimizer.pt", "ranks.pt"]
MODULES = {"encoder": "encoder.", "head": "head.", "whole": ""}


def content(step: int, position: Any = None) -> Checkpoint:
    """A checkpoint of a model with two parts whose weights are all ``step``; the averaged ones a half less."""
    model = {name: torch.full((2, 3), float(step)) for name in ("encoder.weight", "encoder.norm.weight", "head.weight")}
    moments = {"step": torch.tensor(float(step)), "exp_avg": torch.full((2, 3), 0.5 * step)}
    return Checkpoint(
        model=model,
        optimizer={name: dict(moments) for name in model},
        state=TrainState(step, 10 * step, position or {"epoch": 1, "shards": ["a", "b"]}),
        random=random_state(torch.device("cpu")),
        averages={"loss/total": [1.5, float(step)]},
        averaged={name: value - 0.5 for name, value in model.items()},
        loss_scale={"factor": 2.0 * step},
    )


def save(run: Path, step: int, keep: int = 5, position: Any = None) -> Path:
    """Save :func:`content` and wait until it is written."""
    saver = Saver(run, MODULES, keep)
    saver.save(content(step, position))
    assert saver.settle() is None
    saver.close()
    return run / "checkpoints" / f"step_{step:08d}"


def names_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: small\n")
    state = random_state(torch.device("cpu"))
    path = save(tmp_path, 7)
    loaded, expected = load_checkpoint(path), content(7)
    assert loaded.state == TrainState(7, 70, {"epoch": 1, "shards": ["a", "b"]})
    assert loaded.averages == {"loss/total": [1.5, 7.0]}
    assert loaded.random is not None
    assert loaded.random["python"] == state["python"]
    assert torch.equal(loaded.random["torch"], state["torch"])
    assert (loaded.source, loaded.loss_scale, loaded.remarks) == (path, {"factor": 14.0}, [])
    assert loaded.positions == [loaded.state.position]
    for one, other in ((loaded.model, expected.model), (loaded.averaged, expected.averaged)):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert loaded.optimizer.keys() == expected.optimizer.keys()
    for name, moments in loaded.optimizer.items():
        assert all(torch.equal(value, expected.optimizer[name][key]) for key, value in moments.items())
    assert sorted(p.name for p in path.iterdir()) == FILES


def test_the_manifest_says_what_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: small\nseed: 1\n")
    path = save(tmp_path, 7)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["ranks"], manifest["modules"]) == (2, 7, 1, MODULES)
    assert manifest["recipe"] == {
        "name": "small",
        "sha256": hashlib.sha256(b"name: small\nseed: 1\n").hexdigest(),
        "yaml": "name: small\nseed: 1\n",
    }
    assert manifest["torch"] == torch.__version__
    assert {"mavil", "commit"} <= manifest.keys()
    for name in set(FILES) - {"manifest.json"}:
        data = (path / name).read_bytes()
        assert manifest["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_exported_weights_are_the_averaged_ones_by_module(tmp_path: Path) -> None:
    weights = load_weights(save(tmp_path, 7))
    assert {name: list(values) for name, values in weights.items()} == {
        "encoder": ["weight", "norm.weight"],
        "head": ["weight"],
        "whole": ["encoder.weight", "encoder.norm.weight", "head.weight"],
    }
    assert torch.equal(weights["encoder"]["norm.weight"], torch.full((2, 3), 6.5))
    saver = Saver(tmp_path, MODULES, 5)
    plain = content(8)
    plain.averaged = {}
    saver.save(plain)
    saver.close()
    assert torch.equal(load_weights(tmp_path)["head"]["weight"], torch.full((2, 3), 8.0))
    assert not (tmp_path / "checkpoints" / "step_00000008" / "averaged.pt").exists()


def test_weights_of_a_chosen_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)

    def first(*which: str) -> float:
        return float(load_weights(tmp_path, *which)["head"]["weight"][0, 0])

    assert (first(), first("newest"), first("2"), first("0000001")) == (2.5, 2.5, 1.5, 0.5)
    with pytest.raises(UserError, match=r"no checkpoint '4': choose newest, best or a step of 1, 2, 3"):
        first("4")
    with pytest.raises(UserError, match=r"no best checkpoint: set trainer\.best_metric"):
        first("best")
    Saver(tmp_path, MODULES, 5).mark_best(1, "accuracy", 0.5)
    assert first("best") == 0.5
    assert float(load_weights(tmp_path / "checkpoints" / "best")["head"]["weight"][0, 0]) == 0.5
    with pytest.raises(UserError, match="is one checkpoint"):
        load_weights(tmp_path / "checkpoints" / "step_00000001", "best")


def test_weights_need_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        load_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_weights(tmp_path)


def test_weights_of_a_run_that_deletes_its_oldest_checkpoint_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(tmp_path, 1)
    read = checkpoint_folder.read_manifest

    def read_late(folder: Path) -> dict[str, Any]:
        if folder == old:
            save(tmp_path, 2, keep=1)
        return read(folder)

    monkeypatch.setattr("mavil.engine.checkpoints.reading.read_manifest", read_late)
    assert float(load_weights(tmp_path)["head"]["weight"][0, 0]) == 1.5


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def swap(path: Path) -> None:
    """With the file of the checkpoint before: both are sound, and of one size."""
    other = path.parent.with_name("step_00000001") / path.name
    aside = path.with_name("aside")
    os.rename(path, aside)
    shutil.copy(other, path)
    aside.unlink()


DAMAGES: list[Callable[[Path], None]] = [cut, flip, empty, lengthen, swap, Path.unlink]
BYTES, SUM = "bytes instead of", "differs from the checksum in its manifest"
REASONS = {"cut": BYTES, "flip": SUM, "empty": BYTES, "lengthen": BYTES, "swap": SUM, "unlink": "is missing"}
"""Sizes are all that ranks above 0 look at, so they must be noticed without a checksum."""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_any_damage_falls_back_to_the_checkpoint_before(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    damage(path / name)
    with pytest.raises(
        UserError, match=f"{name} .*: this checkpoint is damaged; use another one .*step_00000001 remain"
    ):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        chosen = newest_checkpoint(tmp_path)
    assert chosen is not None
    assert (chosen.state.step, float(chosen.model["head.weight"][0, 0])) == (1, 1.0)
    (remark,) = chosen.remarks
    assert f"step_00000002/{name} " in remark
    assert remark.endswith("going on from step_00000001")
    assert caplog.messages == [remark]
    assert names_in(tmp_path) == [".step_00000002.damaged", "step_00000001"]
    reason = (tmp_path / "checkpoints/.step_00000002.damaged/damage.txt").read_text()
    assert reason.startswith(f"{name} ")
    if name != "manifest.json":
        assert REASONS[damage.__name__] in reason
    # Never chosen again, never lost, and its step can be saved.
    save(tmp_path, 2, keep=1)
    assert names_in(tmp_path) == [".step_00000002.damaged", "step_00000002"]
    again = newest_checkpoint(tmp_path)
    assert again is not None
    assert (again.state.step, again.remarks) == (2, [])


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_noticed_or_harmless(tmp_path: Path, name: str) -> None:
    """Every 97th byte of a file, also in the manifest, which no other file vouches for."""
    path = save(tmp_path, 2)
    before = (path / name).read_bytes()
    sound = json.loads((path / "manifest.json").read_text())
    for place in range(0, len(before), 97 if name != "manifest.json" else 1):
        data = bytearray(before)
        data[place] ^= 4
        (path / name).write_bytes(data)
        try:
            load_checkpoint(path)
        except UserError as error:
            assert f"{name} " in str(error)  # noqa: PT017
            continue
        assert name == "manifest.json"
        assert json.loads(data) == sound
    (path / name).write_bytes(before)
    assert load_checkpoint(path).state.step == 2


def test_two_damaged_ones_of_one_step_are_both_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for _ in range(2):
        flip(save(tmp_path, 2) / "model.pt")
        newest_checkpoint(tmp_path)
    assert names_in(tmp_path) == [".step_00000002.damaged", ".step_00000002.damaged2", "step_00000001"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        cut(save(tmp_path, step) / "ranks.pt")
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint is damaged \(step_00000002/ranks.*step_00000001/ranks"):
            newest_checkpoint(tmp_path)
    assert names_in(tmp_path) == ["step_00000001", "step_00000002"]


def test_a_run_without_checkpoints_begins_at_step_0(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step_00000001.partial").mkdir()
    (tmp_path / "checkpoints" / "step_00000001").write_text("a file")
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", '{"format": 2}'])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json .*damaged; no other one is left"):
        load_checkpoint(path)


def test_another_format_is_refused_and_not_put_aside(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    for text in (json.dumps(sealed(manifest | {"format": 99})), '{"format": 1}'):
        (path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"has checkpoint format (99|1), this version reads format 2"):
            newest_checkpoint(tmp_path)
    assert names_in(tmp_path) == ["step_00000001", "step_00000002"]


def test_a_folder_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refuse(path: Path) -> str:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(checkpoint_folder, "sha256_of", refuse)
    with pytest.raises(UserError, match=r"averaged.pt|model.pt cannot be read \(Permission denied\)"):
        newest_checkpoint(tmp_path)
    assert names_in(tmp_path) == ["step_00000001", "step_00000002"]


def test_a_file_that_unpickles_code_is_not_run(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({"encoder": Path("anything")}, path / "model.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    data = (path / "model.pt").read_bytes()
    manifest["files"]["model.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(UserError, match=r"model\.pt cannot be loaded: [Ww]eights.only"):
        load_checkpoint(path)


def test_a_replacement_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    os.rename(path, path.with_name(".step_00000001.replaced"))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.state.step == 1
    assert names_in(tmp_path) == ["step_00000001"]


def _save_in_rank(run: Path) -> None:
    rank = torch.distributed.get_rank()
    checkpoint = content(3, position={"rank": rank})
    checkpoint.averages = {"rank": float(rank)}
    if rank > 0:
        checkpoint.model, checkpoint.optimizer, checkpoint.averaged = {}, {}, {}
    saver = Saver(run, MODULES, 2)
    saver.save(checkpoint)
    assert saver.settle() is None


def _newest_in_rank(run: Path, hides: str = "") -> Any:
    rank = torch.distributed.get_rank()
    if hides and rank == 1:  # as on a machine that does not see the file
        stat = Path.stat
        Path.stat = lambda path, **k: stat(path.with_name("x") if path.name == hides else path, **k)  # type: ignore
    try:
        found = newest_checkpoint(run)
    except UserError as error:
        return str(error)
    finally:
        if hides and rank == 1:
            Path.stat = stat  # type: ignore[method-assign]
    assert found is not None
    return found.state.step, found.averages, found.state.position, found.positions, len(found.model), found.remarks


def test_every_rank_gets_its_own_share_of_the_same_checkpoint(tmp_path: Path) -> None:
    run_in_ranks(_save_in_rank, tmp_path)
    positions = [{"rank": 0}, {"rank": 1}]
    assert run_in_ranks(_newest_in_rank, tmp_path) == [
        (3, {"rank": float(rank)}, {"rank": rank}, positions, 3, []) for rank in (0, 1)
    ]
    # On another number of ranks: everybody's is there, each one's own is not.
    alone = newest_checkpoint(tmp_path)
    assert alone is not None
    assert (alone.random, alone.averages, alone.positions, alone.state.step) == (None, {}, positions, 3)
    assert torch.equal(alone.model["head.weight"], torch.full((2, 3), 3.0))


def test_ranks_agree_on_a_damaged_checkpoint_and_on_one_that_a_rank_cannot_see(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2) / "optimizer.pt")
    first, second = run_in_ranks(_newest_in_rank, tmp_path)
    assert first[0] == second[0] == 1
    assert first[-1] == second[-1] != []
    first, second = run_in_ranks(_newest_in_rank, tmp_path, "model.pt")
    assert first == second
    assert "rank 1: " in first
    assert "model.pt is missing" in first
    assert "1 of 2 ranks" in first
    cut(tmp_path / "checkpoints/step_00000001/model.pt")
    first, second = run_in_ranks(_newest_in_rank, tmp_path)
    assert first == second
    assert "every checkpoint is damaged" in first


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


def test_best_and_hidden_folders_are_no_steps(tmp_path: Path) -> None:
    for step in (1, 2, 99_999_999, 100_000_000):
        save(tmp_path, step)
    Saver(tmp_path, MODULES, 5).mark_best(2, "accuracy", 0.5)
    (tmp_path / "checkpoints" / ".step_00000009.damaged").mkdir()
    (tmp_path / "checkpoints" / "step_best").mkdir()
    names = [p.name for p in checkpoints(tmp_path)]
    assert names == ["step_00000001", "step_00000002", "step_99999999", "step_100000000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_100000000"
