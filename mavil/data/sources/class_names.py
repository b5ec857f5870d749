"""The classes of a data set: their names, their official order, and the ids that lists use for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mavil.data.sources.list_files import read_lines, read_rows, read_table
from mavil.structs import UserError


@dataclass(frozen=True)
class ClassNames:
    """``names`` in the official order; ``by_id`` finds a name by any spelling a list may use, the name itself included."""

    path: Path
    names: tuple[str, ...]
    by_id: dict[str, str]

    def name_of(self, identity: str, source: Path, line: int | None = None) -> str:
        """The name of a class that ``source`` (in ``line``) calls ``identity``.

        Raises:
            UserError: the class is unknown.
        """
        name = self.by_id.get(identity)
        if name is None:
            where = source if line is None else f"{source}, line {line}"
            raise UserError(
                f"{where}: class {identity!r} is not among the {len(self.names)} of {self.path}; "
                "give the classes file that belongs to this list"
            )
        return name


def labels_in(text: str, classes: ClassNames | None, source: Path, line: int) -> tuple[str, ...]:
    """The labels of a comma-joined list of mids, each once: names by the classes, or the mids themselves without any.

    Raises:
        UserError: a class is unknown.
    """
    mids = dict.fromkeys(mid.strip() for mid in text.split(",") if mid.strip())
    return tuple(mids) if classes is None else tuple(classes.name_of(mid, source, line) for mid in mids)


def read_classes(path: Path | None) -> ClassNames | None:
    """The classes in a CSV ``index,mid,display_name`` (its index is the order), or in a plain list with one name per line.

    CAV-MAE's file for VGGSound writes ``_`` where the official names have a comma (a class there is ``vgg_5,child speech_
    kid speaking``); those come out as VGGSound writes them.

    Raises:
        UserError: the file cannot be read, names no class, or the same class or number twice.
    """
    if path is None:
        return None
    if path.suffix.lower() == ".json":
        raise UserError(f"{path}: an ontology has no order of classes; give class_labels_indices.csv")
    _, first = next(read_rows(path), (0, []))
    if "display_name" in [cell.strip() for cell in first]:
        entries = _numbered(path)
    else:
        entries = [("", name) for _, name in read_lines(path, "a list of class names")]
    names = tuple(name for _, name in entries)
    if not names:
        raise UserError(f"{path}: names no class; write one class name per line")
    doubled = _first_twice(names)
    if doubled is not None:
        raise UserError(f"{path}: class {doubled!r} is there twice; remove one of the two")
    by_id: dict[str, str] = {}
    for mid, name in entries:
        by_id |= {spelling: name for spelling in (name, re.sub(", ", "_ ", name), mid) if spelling}
    return ClassNames(path, names, by_id)


def _numbered(path: Path) -> list[tuple[str, str]]:
    rows = read_table(path, "index", "mid", "display_name")
    try:
        numbered = sorted((int(row["index"]), row["mid"].strip(), row["display_name"].strip()) for _, row in rows)
    except ValueError as error:
        raise UserError(f"{path}: column 'index' must count the classes: {error}") from None
    if _first_twice(number for number, _, _ in numbered) is not None:
        raise UserError(f"{path}: two classes have the same index")
    return [(mid, name.replace("_ ", ", ") if mid.startswith("vgg_") else name) for _, mid, name in numbered]


def _first_twice(values: Iterable[object]) -> object | None:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
