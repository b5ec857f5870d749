"""The best checkpoint of a run: which step it is, and by what it was judged.

``checkpoints/best.json`` holds step, metric and value; ``checkpoints/best`` is a link to that step's folder, for people and
for whoever asks for the best weights. The file decides: the link is set after it, and set again when a run goes on. A mark
whose checkpoint is gone (it was damaged and put aside) is no mark, and the next evaluation sets a new one.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mavil.atomic_files import replace_link, sync, write_text
from mavil.engine.checkpoints.folder import folder_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The step whose evaluation gave the best ``value`` of ``metric`` so far."""

    step: int
    metric: str
    value: float


def best_of(run: Path) -> Best | None:
    """What was marked in a run before, ``None`` where nothing was or its checkpoint is gone; sets the link right."""
    folder = run / "checkpoints"
    try:
        best = Best(**json.loads((folder / "best.json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read (%s): the best checkpoint so far is forgotten", folder / "best.json", error)
        return None
    target = folder_of(run, best.step)
    if not target.is_dir():
        logger.warning("%s, the best checkpoint so far, is gone: the next evaluation marks a new one", target)
        return None
    link = folder / "best"
    if not link.is_symlink() or os.readlink(link) != target.name:
        replace_link(link, target.name)
    return best


def mark(run: Path, best: Best) -> None:
    """Make a checkpoint the best one.

    Raises:
        OSError: it could not be written; the mark before is still the one.
    """
    folder = run / "checkpoints"
    write_text(folder / "best.json", json.dumps(asdict(best)) + "\n")
    replace_link(folder / "best", folder_of(run, best.step).name)
    sync(folder)
