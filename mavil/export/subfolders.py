"""A folder of other people's files inside an export, which is whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mavil.atomic_files import sync
from mavil.structs import UserError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside its place; what was written into it gets its name at the end, or is gone after an error.

    Raises:
        UserError: something is there already, or nothing can be written there.
    """
    if target.exists():
        raise UserError(f"{target} is there already: remove it, or choose another folder")
    aside = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for path in aside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.rename(aside, target)
        sync(target.parent)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}): choose another folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
