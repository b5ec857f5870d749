"""Exported folders: what is written comes back; what is not what was written does not."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import mavil.export.folder as folder_module
from mavil.config import Recipe
from mavil.export.card import card_of
from mavil.export.folder import DIGEST_PLACE, is_export, read_export, write_export
from mavil.export.parts import Exported, encoders_of, portable_recipe, wanted_parts
from mavil.models.build import build_masked
from mavil.recipe import change_recipe
from mavil.structs import UserError
from tests.support.recipes import tiny_recipe

STATISTICS = ("audio.mean=-4.0", "audio.std=4.5")


def complete(*changes: str, **parts: Any) -> Recipe:
    return change_recipe(tiny_recipe(**parts), *STATISTICS, *changes)


@pytest.fixture(scope="module")
def exported() -> Exported:
    torch.manual_seed(0)
    recipe = complete()
    weights = {name: dict(part.state_dict()) for name, part in build_masked(recipe).parts().items()}
    return Exported(recipe, encoders_of(recipe, weights, "it"), {"run": "tiny", "step": 3})


@pytest.fixture
def written(tmp_path: Path, exported: Exported) -> Path:
    return write_export(tmp_path / "out", exported, f"card of {DIGEST_PLACE}\n")


def test_what_was_written_comes_back(written: Path, exported: Exported) -> None:
    back = read_export(written)
    assert back.recipe == exported.recipe
    assert back.about == exported.about
    assert list(back.parts) == ["audio_encoder", "video_encoder", "fusion"]  # no decoder
    for part, tensors in exported.parts.items():
        assert all(torch.equal(back.parts[part][name], tensor) for name, tensor in tensors.items())
    tensors = safetensors.torch.load_file(written / "model.safetensors")
    assert set(tensors) == {f"{part}.{name}" for part, names in exported.parts.items() for name in names}


def test_the_card_has_the_checksum_of_the_file_and_everybody_may_read_it(written: Path) -> None:
    digest = hashlib.sha256((written / "model.safetensors").read_bytes()).hexdigest()
    assert (written / "README.md").read_text() == f"card of {digest}\n"
    assert json.loads((written / "config.json").read_text())["weights_sha256"] == digest
    modes = {
        stat.S_IMODE((written / name).stat().st_mode) for name in ("model.safetensors", "config.json", "README.md")
    }
    assert len(modes) == 1


def test_two_exports_of_one_model_are_the_same_bytes(tmp_path: Path, exported: Exported) -> None:
    folders = [write_export(tmp_path / name, exported, "card") for name in ("a", "b")]
    assert len({tuple((one / name).read_bytes() for name in sorted(os.listdir(one))) for one in folders}) == 1


@pytest.mark.parametrize("start", ["weights", "start.video", "start.model"])
def test_nothing_of_this_machine_leaves_it(start: str) -> None:
    secret = "/home/someone/secret"
    recipe = complete(
        f"data.train={secret}/train",
        f"data.evaluation={secret}/evaluation",
        f"data.remote.cache={secret}/cache",
        f"task.{start}={secret}/first",
        f"task.teacher.run={secret}/stage1",
    )
    portable = portable_recipe(recipe)
    text = json.dumps(portable.model_dump(mode="json"))
    assert "someone" not in text
    assert '"first"' in text  # names stay
    assert '"stage1"' in text
    assert portable.model_copy(update={"data": recipe.data, "task": recipe.task}) == recipe


def test_the_parts_are_those_that_embed() -> None:
    projection = {"contrast": {"projection": {"hidden_width": 8, "width": 4}}, "kind": "pretrain"}
    assert wanted_parts(complete(task=projection))[-2:] == ["audio_projection", "video_projection"]
    audio = {"kind": "classify", "modalities": ["audio"]}
    assert wanted_parts(complete(task=audio)) == ["audio_encoder"]  # its fusion is not used
    assert wanted_parts(complete(task={"kind": "classify"}))[-1] == "fusion"
    with pytest.raises(UserError, match="holds no video_encoder"):
        encoders_of(complete(), {"audio_encoder": {}}, "runs/x")


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        change(tree)
        (folder / "config.json").write_text(json.dumps(tree))

    return apply


def _tamper(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _resealed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    """Whoever can compute a checksum changes the weights."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
        digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        _config(lambda tree: tree.update(weights_sha256=digest, weights_bytes=size))(folder)

    return apply


def _as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_tamper, "tampered with"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "has 1000 bytes instead of"),
        (_as_pickle, "pytorch_model.bin may be a pickle"),
        (_config(lambda tree: tree.update(version=2)), "export version 2"),
        (_config(lambda tree: tree.update(format="other")), "not of this project"),
        (_config(lambda tree: tree.pop("parts")), "is not what mavil export wrote"),
        (_config(lambda tree: tree["recipe"]["audio"].update(mean=0.0)), "its recipe was changed"),
        (
            _config(lambda tree: tree["parts"]["fusion"].pop("norm.weight")),
            "fusion.norm.weight is .32., config.json says nothing",
        ),
        (_config(lambda tree: tree["parts"]["fusion"].update({"norm.weight": [7]})), "says .7."),
        (_resealed(lambda tensors: tensors["fusion.norm.weight"].fill_(float("nan"))), "fusion.norm.weight has values"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not of this project"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "not of this project"),
        (lambda folder: (folder / "config.json").unlink(), "is no export"),
    ],
)
def test_what_is_not_what_was_written_is_refused(written: Path, harm: Callable[[Path], object], told: str) -> None:
    harm(written)
    with pytest.raises(UserError, match=told) as error:
        read_export(written)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("harm", [_tamper, _config(lambda tree: tree["recipe"]["audio"].update(mean=0.0))])
def test_what_somebody_changed_is_read_when_allowed_and_says_so(
    written: Path, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    assert "changed" not in read_export(written).about
    harm(written)
    found = read_export(written, allow_changed=True)
    assert found.about["changed"]
    write_export(tmp_path / "again", found, card_of(found, "again"))
    read_export(tmp_path / "again")  # it has checksums of its own
    assert "changed by hand" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        _config(lambda tree: tree["parts"]["fusion"].pop("norm.weight")),
        _resealed(lambda tensors: tensors["fusion.norm.weight"].fill_(float("nan"))),
    ],
)
def test_what_is_no_whole_export_is_refused_even_then(written: Path, harm: Callable[[Path], object]) -> None:
    harm(written)
    with pytest.raises(UserError):
        read_export(written, allow_changed=True)


def test_a_part_that_its_recipe_needs_must_be_there(tmp_path: Path, exported: Exported) -> None:
    parts = {name: tensors for name, tensors in exported.parts.items() if name != "fusion"}
    write_export(tmp_path / "out", Exported(exported.recipe, parts), "card")
    with pytest.raises(UserError, match="has no fusion"):
        read_export(tmp_path / "out")


def test_a_pickle_is_no_export(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="a pickle is never loaded"):
        read_export(path)


def test_weights_that_are_not_finite_do_not_leave(tmp_path: Path, exported: Exported) -> None:
    parts = {part: dict(names) for part, names in exported.parts.items()}
    parts["fusion"]["norm.weight"] = torch.full((32,), float("inf"))
    with pytest.raises(UserError, match=r"fusion\.norm\.weight has values that are not finite"):
        write_export(tmp_path / "out", Exported(exported.recipe, parts), "card")
    assert not (tmp_path / "out").exists()


def test_only_an_export_is_replaced_and_only_when_told(tmp_path: Path, written: Path, exported: Exported) -> None:
    with pytest.raises(UserError, match=r"holds an export already.*--force"):
        write_export(written, exported, "second")
    write_export(written, exported, "second", replaces=True)
    assert (written / "README.md").read_text() == "second"
    mine = tmp_path / "mine"
    mine.mkdir()
    write_export(mine, exported, "into an empty folder")
    (mine / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="not an export"):
        write_export(mine, exported, "third", replaces=True)
    assert (mine / "README.md").read_text() == "into an empty folder"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]  # nothing hidden stays


@pytest.mark.parametrize("step", ["writing", "renaming"])
def test_a_failure_leaves_what_was_there(
    written: Path, exported: Exported, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fail_the_second(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            fail()
        rename(source, target)

    if step == "writing":
        monkeypatch.setattr(folder_module, "sync", fail)
    else:
        monkeypatch.setattr(folder_module.os, "rename", fail_the_second)
    with pytest.raises(UserError, match="No space left"):
        write_export(written, exported, "second", replaces=True)
    assert (written / "README.md").read_text().startswith("card of")
    assert read_export(written).parts
    assert sorted(path.name for path in written.parent.iterdir()) == ["out"]


def test_a_replacement_that_was_cut_off_is_undone(written: Path, exported: Exported) -> None:
    written.rename(written.with_name(".out.replaced"))  # where a killed process leaves it
    with pytest.raises(UserError, match="holds an export already"):
        write_export(written, exported, "second")
    assert is_export(written)
