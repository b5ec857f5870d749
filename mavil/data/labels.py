"""Class names and multi-hot targets; classes come from a shard index, a metadata field or a file, and keep its order."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mavil.structs import UserError

NUM_NEAR = 3
"""Names offered for an unknown one."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a classifier, each once: a class's place is its number in targets and logits.

    Raises:
        UserError: there is no class at all.
    """

    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(dict.fromkeys(self.classes)))
        if not self.classes:
            raise UserError(
                "the shards have no labels: pack a folder with one sub-folder per class, or a CSV with a labels column, "
                "or name a metadata field in task.label_field"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """One class name per line; blank lines count for nothing.

        Raises:
            UserError: the file cannot be read as text or names no class.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a list of class names: {error}") from None
        names = tuple(line.strip() for line in lines if line.strip())
        if not names:
            raise UserError(f"{path}: names no class; write one class name per line")
        return cls(names)

    def __len__(self) -> int:
        return len(self.classes)

    def number(self, label: str) -> int:
        """The place of a class.

        Raises:
            UserError: not a class of this vocabulary; the message names the nearest ones.
        """
        if label not in self._numbers:
            near = difflib.get_close_matches(label, self.classes, n=NUM_NEAR) or list(self.classes[:NUM_NEAR])
            raise UserError(
                f"label {label!r} is none of the {len(self)} classes (nearest: {', '.join(near)}): "
                "use shards whose labels occur in the training set, or correct the label and pack again"
            )
        return self._numbers[label]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def multi_hot(self, labels: Iterable[str]) -> Tensor:
        """``[classes]`` float32: 1 at each label's place.

        Raises:
            UserError: a label is not a class of this vocabulary.
        """
        target = torch.zeros(len(self))
        target[[self.number(label) for label in labels]] = 1.0
        return target


def nearest_spelling(name: str, classes: Iterable[str]) -> str | None:
    """The class that differs from ``name`` only in capitals or spaces, if there is one."""
    return next((known for known in classes if known != name and _spelled(known) == _spelled(name)), None)


def refuse_look_alikes(classes: Iterable[str], where: str) -> None:
    """Classes that differ only in capitals or spaces are one class of somebody who wrote it twice.

    Raises:
        UserError: there are two such classes; both are named.
    """
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(_spelled(name), name)
        if other != name:
            raise UserError(
                f"{where}: the classes {other!r} and {name!r} differ only in capitals or spaces: write them alike, or rename "
                "one, and pack the clips again"
            )


def _spelled(name: str) -> str:
    return " ".join(name.split()).casefold()


def record_labels(record: Mapping[str, Any], label_field: str | None) -> tuple[str, ...]:
    """The labels of a clip's JSON record: its ``labels``, or its metadata ``label_field`` where one is named."""
    if label_field is None:
        return tuple(record.get("labels") or ())
    value = (record.get("metadata") or {}).get(label_field)
    return () if value is None or value == "" else (str(value),)


def count_field_values(records: Iterable[bytes], label_field: str) -> dict[str, int]:
    """How many clips have each value of a metadata field, given the JSON records of all clips; values in order.

    Raises:
        UserError: no clip has the field; the message lists the fields there are.
    """
    counts: Counter[str] = Counter()
    fields: set[str] = set()
    for text in records:
        try:
            record = json.loads(text)
        except ValueError:
            continue  # the loader counts such a clip as unusable
        if isinstance(record, dict):
            fields.update(record.get("metadata") or {})
            counts.update(record_labels(record, label_field))
    if not counts:
        known = ", ".join(sorted(fields)) or "none"
        raise UserError(
            f"no clip has a metadata field {label_field!r} (fields: {known}): set task.label_field to one of them"
        )
    return dict(sorted(counts.items()))
