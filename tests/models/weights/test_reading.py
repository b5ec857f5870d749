from __future__ import annotations

import argparse
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mavil.models.weights import read_checkpoint
from mavil.structs import UserError

WEIGHTS = {"blocks.0.norm1.weight": torch.arange(3.0), "norm.bias": torch.ones(2, 2)}


def saved(folder: Path, content: Any, name: str = "file.pth", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def assert_read(path: Path) -> None:
    found = read_checkpoint(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_wrapped_and_bare(tmp_path: Path, wrapper: str | None) -> None:
    content = {wrapper: WEIGHTS, "epoch": 3, "ema": {"decay": 0.9}} if wrapper else dict(WEIGHTS)
    assert_read(saved(tmp_path, content))


def test_a_text_called_model_is_not_the_wrapper(tmp_path: Path) -> None:
    assert_read(saved(tmp_path, {"model": "vit_base", "state_dict": WEIGHTS}))


@pytest.mark.parametrize("is_zip", [True, False])
def test_arguments_and_numpy_numbers_beside_the_weights(tmp_path: Path, is_zip: bool) -> None:
    content = {"model": WEIGHTS, "args": argparse.Namespace(lr=1e-3, best=np.float64(0.4)), "epoch": np.int64(7)}
    assert_read(saved(tmp_path, content, _use_new_zipfile_serialization=is_zip))


def test_numpy_numbers_of_files_before_numpy_2(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": WEIGHTS, "best": np.float64(0.4)}, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core" in content
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert_read(path)


def test_data_parallel_prefix_is_stripped_once(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in WEIGHTS.items()}
    assert_read(saved(tmp_path, wrapped))
    twice = {f"module.{name}": value for name, value in wrapped.items()}
    assert set(read_checkpoint(saved(tmp_path, twice))) == set(wrapped)
    assert set(read_checkpoint(saved(tmp_path, {**wrapped, "extra": torch.ones(1)}))) == {*wrapped, "extra"}


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert_read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("is_zip", [True, False])
def test_other_classes_are_refused_and_never_run(tmp_path: Path, is_zip: bool) -> None:
    content = {"model": WEIGHTS, "where": pathlib.PurePosixPath("x")}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match="would run code from the file") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    if is_zip:
        assert "PurePosixPath" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off", b"\x80\x02}q\x00("])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_bytes_that_are_no_checkpoint(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"a\.\w+ is not a .*file, or a damaged one"):
        read_checkpoint(tmp_path / name)


def test_a_folder_a_missing_file_and_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: .* task\.weights"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint file"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_checkpoint(saved(tmp_path, {"model": {}, "epoch": 1}))
    with pytest.raises(UserError, match="holds no state dict"):
        read_checkpoint(saved(tmp_path, [1, 2]))
