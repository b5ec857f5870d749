"""Unpickling in which nothing of the file runs: every class that is not on a short list becomes an inert placeholder.

Stands in for the module ``pickle`` in ``torch.load(..., pickle_module=inert)``. A pickle can only name classes and functions
and ask for them to be called; here such a name never leads to an import, whatever it is, so that checkpoints of projects that
are not installed (fairseq, omegaconf) can be read, and those that would do harm do none.
"""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any

import torch

_ALLOWED: dict[tuple[str, str], Any] = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch.storage", "UntypedStorage"): torch.storage.UntypedStorage,
    **{
        ("torch._utils", name): getattr(torch._utils, name)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}
"""What is real: containers, and what tensors are made of."""
_DEEPEST = 12
"""Levels of nested settings that are looked at; objects may refer to each other in circles."""


class Inert:
    """Stands for an object of a class that is not loaded: takes everything that unpickling does to it, and does nothing."""

    state: Any

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Arguments are forgotten: no constructor runs."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Nothing."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """A subclass of dict gets its items this way."""

    def append(self, value: object) -> None:
        """A subclass of list gets its items this way."""

    def extend(self, values: object) -> None:
        """Likewise."""

    def add(self, value: object) -> None:
        """A subclass of set likewise."""


class Unpickler(pickle.Unpickler):
    """Finds what is allowed, and placeholders for all the rest."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Never imports anything."""
        found = _ALLOWED.get((module_name, global_name))
        if found is not None:
            return found
        dtype = getattr(torch, global_name, None) if module_name == "torch" and global_name.isidentifier() else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return type("Inert", (Inert,), {})


def load(file: IO[bytes], **options: Any) -> Any:
    """As ``pickle.load``, with :class:`Unpickler`."""
    return Unpickler(file, **options).load()


def plain(value: Any, depth: int = 0) -> Any:
    """Settings in whatever objects they came as plain values; ``None`` for what is none.

    Placeholders and argparse's Namespace become dicts of their attributes; omegaconf's containers and nodes what they hold.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if depth > _DEEPEST:
        return None
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else {}
        return plain(next((state[key] for key in ("_content", "_val") if key in state), state), depth + 1)
    if isinstance(value, argparse.Namespace):
        return plain(vars(value), depth + 1)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    return None
