"""A checkpoint file of any project to its tensors, without running anything that the file brings along."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mavil.structs import UserError

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "model_state", "weights")
"""Under which key a training script keeps the state dict [source MAE, Audio-MAE: model; VideoMAE: model or module]."""
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


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: torch's format, old or new, or safetensors; unwrapped, without DataParallel's ``module.``.

    A file that asks for other classes than tensors, plain containers, argparse's Namespace and NumPy's numbers is refused:
    unpickling runs code that the file chooses.

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
    found = _state_dict_in(_content(path))
    if not found:
        raise UserError(
            f"{path} holds no state dict: it must be a dict of tensors, bare or under one of {', '.join(_WRAPPERS)}"
        )
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file, or a damaged one: {error}") from error
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(_refusal(path)) from error
        raise UserError(f"{path} is not a checkpoint file, or a damaged one: download it again") from error
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError, AttributeError, OSError) as error:
        # Whatever torch's reader says about bytes that are no pickle at all.
        raise UserError(f"{path} is not a checkpoint file, or a damaged one: download it again") from error


def _refusal(path: Path) -> str:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError):  # torch lists them for its newer format only
        classes = []
    named = f" ({', '.join(sorted(classes)[:3])})" if classes else ""
    return (
        f"{path} holds objects beside tensors{named}, and loading them would run code from the file: where you trust it, "
        "save its state dict alone, torch.save(torch.load(FILE, weights_only=False)['model'], NEW)"
    )


def _state_dict_in(content: object) -> dict[str, Tensor]:
    """The innermost dict with tensors, following the wrappers' names."""
    if not isinstance(content, Mapping):
        return {}
    for key in _WRAPPERS:
        if inner := _state_dict_in(content.get(key)):
            return inner
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
