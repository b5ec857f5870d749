"""One file of stored numbers: reading it, finding what is in it, and knowing what nobody asked for."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mavil.structs import UserError

Key = tuple[str, ...]
"""Where something is: the keys of the dicts from the outside in. They may have dots in them, so they stay apart."""
DESCRIPTIVE = ("upstream", "model", "config", "cfg", "task_cfg", "frozen", "torchvision", "upstream_mae", "mae_config")
"""What a file says about itself."""


class Fixture:
    """The content of one file; :meth:`get` remembers what was asked for.

    Raises:
        UserError: the file cannot be read, or is not a dict.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = _read(path)
        self._asked: set[Key] = set()

    def get(self, *key: str) -> Any:
        """What stands under these keys; a dict counts as asked for with everything in it.

        Raises:
            UserError: there is nothing.
        """
        if not self.has(*key):
            raise UserError(f"{self.path} has no {'.'.join(key)}: it is not of the documented format")
        self._asked.add(key)
        return self._at(key)

    def tensor(self, *key: str) -> Tensor:
        """A tensor, floating-point ones as float32 at least.

        Raises:
            UserError: there is none.
        """
        value = self.get(*key)
        if not isinstance(value, Tensor):
            raise UserError(f"{self.path}: {'.'.join(key)} is a {type(value).__name__}, not a tensor")
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    def number(self, *key: str) -> float:
        """A number.

        Raises:
            UserError: there is none.
        """
        value = self.get(*key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{self.path}: {'.'.join(key)} is a {type(value).__name__}, not a number")
        return value

    def has(self, *key: str) -> bool:
        """Whether anything stands there; asking is not yet using it."""
        value: Any = self.content
        for name in key:
            if not isinstance(value, dict) or name not in value:
                return False
            value = value[name]
        return True

    def keys(self, *key: str) -> list[str]:
        """The names in a dict, none where there is no dict."""
        value = self._at(key) if self.has(*key) else None
        return [str(name) for name in value] if isinstance(value, dict) else []

    def unasked(self) -> list[str]:
        """What nobody asked for, in dotted names; a dict of which nothing was used is named once."""
        return list(self._unasked((), self.content))

    def _at(self, key: Key) -> Any:
        value: Any = self.content
        for name in key:
            value = value[name]
        return value

    def _unasked(self, key: Key, value: Any) -> Iterator[str]:
        if key in self._asked or (key and (key[0] in DESCRIPTIVE or key[-1] == "upstream")):
            return
        is_touched = any(asked[: len(key)] == key for asked in self._asked)
        if isinstance(value, dict) and (is_touched or not key):
            for name, inner in value.items():
                yield from self._unasked((*key, str(name)), inner)
        else:
            yield ".".join(key)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        IndexError,
        AttributeError,
        OSError,
    ) as error:
        raise UserError(f"{path} is not a file of fixtures, or a damaged one") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}: a file of fixtures is a dict")
    return content
