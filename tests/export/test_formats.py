"""What stands beside an export on request: all of it in one command's words, or one line before anything is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch

import mavil
from mavil.commands.export_formats import check_formats, write_formats
from mavil.export.folder import read_export
from mavil.structs import UserError
from tests.support.exports import random_export, waveforms, written_export


def test_formats_lie_in_the_export_which_stays_one(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    exported = random_export()
    folder = written_export(tmp_path / "out", exported)
    sound = list(waveforms(2, exported.recipe))
    before = mavil.load(folder, device="cpu").embed_audio(sound, 16_000)
    lines = write_formats(folder, ["transformers", "timm"])
    assert any("AutoModel" in line for line in lines)
    assert timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).num_features == 32
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_mavil.py",
        "timm",
    }
    assert torch.equal(mavil.load(folder, device="cpu").embed_audio(sound, 16_000), before)
    assert read_export(folder).recipe == exported.recipe
    assert write_formats(folder, []) == []


def test_what_cannot_be_written_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = random_export("audio.stride=[8, 8]").recipe
    with pytest.raises(UserError, match="timm's ViT cannot be"):
        check_formats(recipe, ["transformers", "timm"])
    check_formats(recipe, ["torch_export"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler"):
        check_formats(recipe, ["compiled"])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("onnx", "transformers") else found(name)
    )
    with pytest.raises(UserError, match=r"mavil\[onnx\]"):
        check_formats(recipe, ["onnx"])
    with pytest.raises(UserError, match=r"mavil\[transformers\]"):
        check_formats(recipe, ["transformers"])
    folder = written_export(tmp_path / "out", random_export("audio.stride=[8, 8]"))
    with pytest.raises(UserError, match="overlap"):
        write_formats(folder, ["timm"])
    assert len(list(folder.iterdir())) == 3
