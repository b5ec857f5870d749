"""Files with objects of other classes: read where that is allowed, and nothing of them ever runs."""

from __future__ import annotations

import collections
import os
import pathlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from mavil.models.weights import read_file
from mavil.structs import UserError

WEIGHTS = {"blocks.0.norm1.weight": torch.arange(3.0), "norm.bias": torch.ones(2, 2, dtype=torch.float16)}


class Runs:
    """Asks, when it is unpickled, for a command to be run."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_command_in_the_file_is_not_run(tmp_path: Path, is_zip: bool) -> None:
    path, proof = tmp_path / "file.pth", tmp_path / "it_ran"
    content = {"model": WEIGHTS, "harm": Runs(f"touch {proof}"), "where": pathlib.PurePosixPath("x")}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r"--allow-pickle .* task\.start\.allow_pickle=true"):
        read_file(path)
    found = read_file(path, allow_pickle=True).tensors
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) and found[name].dtype == WEIGHTS[name].dtype for name in WEIGHTS)
    assert not proof.exists()


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package that is there while a file is written, and must not be needed to read it."""
    package = types.ModuleType("not_installed")
    monkeypatch.setitem(sys.modules, "not_installed", package)
    return package


def make_class(package: types.ModuleType, name: str, *bases: type) -> Any:
    made = type(name, bases, {"__module__": package.__name__})
    setattr(package, name, made)
    return made


def test_settings_in_objects_of_packages_that_are_not_there(
    tmp_path: Path, unknown: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As omegaconf keeps them: a container's content, a node's value, and a way back to the parent."""
    node, container, listed = (
        make_class(unknown, "Node"),
        make_class(unknown, "Container"),
        make_class(unknown, "L", list),
    )
    ordered = make_class(unknown, "Ordered", collections.OrderedDict)
    heads, cfg = node(), container()
    heads._val = 4
    cfg._content = {"heads": heads, "sizes": [1, 2]}
    heads._parent = cfg
    content = {"model": ordered(WEIGHTS), "state_dict": WEIGHTS, "cfg": {"inner": cfg}, "list": listed([1])}
    torch.save(content, tmp_path / "file.pth")
    monkeypatch.delitem(sys.modules, "not_installed")
    with pytest.raises(UserError, match=r"not_installed\.\w+"):
        read_file(tmp_path / "file.pth")
    found = read_file(tmp_path / "file.pth", allow_pickle=True)
    assert found.tensors.keys() == WEIGHTS.keys()
    assert found.settings == {"cfg": {"inner": {"heads": 4, "sizes": [1, 2]}}}
    assert "not_installed" not in sys.modules


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "file.pt"))
    with pytest.raises(UserError, match=r"file\.pt is a TorchScript program"):
        read_file(tmp_path / "file.pt", allow_pickle=True)


def test_settings_that_go_in_circles_end(tmp_path: Path) -> None:
    circle: dict[str, Any] = {"lr": 0.1}
    circle["again"] = circle
    torch.save({"model": WEIGHTS, "args": circle}, tmp_path / "file.pth")
    assert read_file(tmp_path / "file.pth").settings["args"]["again"]["lr"] == 0.1
