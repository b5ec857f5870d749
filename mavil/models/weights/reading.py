"""A checkpoint file of any project to its tensors, without running anything that the file brings along."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mavil.models.weights import inert
from mavil.structs import UserError

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "model_state", "weights")
"""Under which key a training script keeps the state dict [source MAE, Audio-MAE: model; VideoMAE: model or module]."""
_SETTINGS = ("args", "cfg", "config")
"""Under which key a training script keeps its settings [source MAE family: args; fairseq: cfg]."""
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
]
"""What the MAE family's training scripts save beside the weights: their arguments, an accuracy as a NumPy number. The name of
NumPy's function before version 2 is written in older files."""
_NO_CHECKPOINT = "is not a checkpoint file, or a damaged one: download it again"


@dataclass(frozen=True)
class CheckpointFile:
    """What is in a checkpoint file.

    Attributes:
        tensors: the state dict, unwrapped, without DataParallel's ``module.``.
        settings: what its training script was told, by ``args``, ``cfg`` or ``config``: nested dicts and plain values.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict in a file; see :func:`read_file`."""
    return read_file(path, allow_pickle).tensors


def read_file(path: str | Path, allow_pickle: bool = False) -> CheckpointFile:
    """The state dict in a file and the settings beside it: torch's format, old or new, or safetensors.

    A file that asks for other classes than tensors, plain containers, argparse's Namespace and NumPy's numbers is refused:
    unpickling runs code that the file chooses. With ``allow_pickle`` such a file is read too, with inert placeholders where
    those classes would be (:mod:`mavil.models.weights.inert`): still nothing of it runs, and nothing need be installed.

    Raises:
        UserError: no such file, not a checkpoint, classes that are not loaded, or no state dict in it.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: a run of this project is started from with task.weights; of another project name the file"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    content = _content(path, allow_pickle)
    found = _state_dict_in(content)
    if not found:
        raise UserError(
            f"{path} holds no state dict: it must be a dict of tensors, bare or under one of {', '.join(_WRAPPERS)}"
        )
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    settings = inert.plain({key: content.get(key) for key in _SETTINGS}) if isinstance(content, Mapping) else {}
    return CheckpointFile(found, {key: value for key, value in settings.items() if isinstance(value, dict)})


def _content(path: Path, allow_pickle: bool) -> object:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file, or a damaged one: {error}") from error
    if _is_program(path):
        raise UserError(
            f"{path} is a TorchScript program: ask for its state dict, or for the checkpoint it was made of"
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and "Unsupported" not in str(error):
            raise UserError(f"{path} {_NO_CHECKPOINT}") from error
        if not allow_pickle:
            raise UserError(_refusal(path)) from error
        return _with_placeholders(path)
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError, AttributeError, OSError) as error:
        # Whatever torch's reader says about bytes that are no pickle at all.
        raise UserError(f"{path} {_NO_CHECKPOINT}") from error


def _is_program(path: Path) -> bool:
    """Whether torch would hand a file to TorchScript's loader, which reads classes of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _with_placeholders(path: Path) -> object:
    # Such an archive is a program: torch would hand it to another loader, past the placeholders.
    if zipfile.is_zipfile(path) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist()):
        raise UserError(
            f"{path} is a TorchScript program: ask for its state dict, or for the checkpoint it was made of"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)
    # Whatever a file that was made to do harm, or is damaged, makes of placeholders.
    except Exception as error:
        raise UserError(f"{path} {_NO_CHECKPOINT} ({type(error).__name__})") from error


def _refusal(path: Path) -> str:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError):  # torch lists them for its newer format only
        classes = []
    named = f" ({', '.join(sorted(classes)[:3])})" if classes else ""
    return (
        f"{path} holds objects beside tensors{named}, and loading them would run code from the file: to read it with "
        "placeholders in their place, so that nothing runs, pass --allow-pickle to mavil convert, or set "
        "task.start.allow_pickle=true"
    )


def _state_dict_in(content: object) -> dict[str, Tensor]:
    """The innermost dict with tensors, following the wrappers' names."""
    if not isinstance(content, Mapping):
        return {}
    for key in _WRAPPERS:
        if inner := _state_dict_in(content.get(key)):
            return inner
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
