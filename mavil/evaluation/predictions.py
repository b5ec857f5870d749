"""What a classifier said about every clip of an evaluation set, and the file that keeps it.

Metrics, comparisons of runs and audits are functions of this and need neither the model nor the clips.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavil.structs import UserError

FORMAT = "mavil predictions 1"
"""Stands in the file; a later format has another number, so that an old program does not misread it."""
_SCORES = "scores/"


@dataclass(frozen=True)
class Predictions:
    """One row per clip, each clip once.

    Attributes:
        keys: of the ``n`` clips, sorted.
        classes: in the order of the columns.
        targets: ``[n, classes]`` float32, 1 at each label of a clip.
        multi_label: a clip may have several labels, and each class is decided by itself (sigmoid); otherwise one (softmax).
        scores: logits ``[n, classes]`` float32 by what the model was shown: ``audio``, ``video``, ``audio+video``. Where
            several windows of a clip were averaged, ``audio+video, one window`` and so on are those of its middle. A row of
            NaN belongs to a clip that lacks what was to be shown; other scores are finite.
        facts: how they were made (checkpoint, data, windows, counts of clips left out), as JSON can hold it.

    Raises:
        ValueError: shapes that do not fit, keys that are not sorted and different, scores that are not finite.
    """

    keys: list[str]
    classes: tuple[str, ...]
    targets: Tensor
    multi_label: bool
    scores: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.keys), len(self.classes))
        if any(one >= other for one, other in zip(self.keys, self.keys[1:], strict=False)):
            raise ValueError("the keys are not sorted, or one comes twice")
        if tuple(self.targets.shape) != shape:
            raise ValueError(f"targets {tuple(self.targets.shape)} of {shape[0]} clips and {shape[1]} classes")
        for name, scores in self.scores.items():
            if tuple(scores.shape) != shape:
                raise ValueError(f"scores {name!r} {tuple(scores.shape)} of {shape[0]} clips and {shape[1]} classes")
            is_partly_nan = scores.isnan().any(dim=1) & ~scores.isnan().all(dim=1)
            if is_partly_nan.any() or scores.isinf().any():
                raise ValueError(f"scores {name!r} are not finite")

    def __len__(self) -> int:
        return len(self.keys)

    def judged(self, name: str) -> Tensor:
        """``[n]`` bool: the clips that have what was to be shown."""
        return ~self.scores[name].isnan().all(dim=1)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a compressed ``.npz`` without pickled objects; at any moment either the old or the new file is there."""
    arrays = {
        "format": np.array(FORMAT),
        "keys": np.array(predictions.keys, dtype=np.str_),
        "classes": np.array(predictions.classes, dtype=np.str_),
        "targets": (predictions.targets > 0.5).cpu().numpy(),
        "multi_label": np.array(predictions.multi_label),
        "facts": np.array(json.dumps(predictions.facts)),
    }
    arrays |= {f"{_SCORES}{name}": scores.float().cpu().numpy() for name, scores in predictions.scores.items()}
    aside = path.with_name(f".{path.name}.partial")
    with open(aside, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_predictions(path: Path) -> Predictions:
    """What :func:`write_predictions` wrote.

    Raises:
        UserError: there is no such file, it is damaged, or it is something else.
    """
    advice = "make it again with mavil evaluate RUN"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {advice}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["format"]) != FORMAT:
                raise UserError(f"{path}: its format is {str(stored['format'])!r}, not {FORMAT!r}; {advice}")
            scores = {n.removeprefix(_SCORES): stored[n] for n in stored.files if n.startswith(_SCORES)}
            return Predictions(
                [str(key) for key in stored["keys"]],
                tuple(str(name) for name in stored["classes"]),
                torch.from_numpy(stored["targets"]).float(),
                bool(stored["multi_label"]),
                {name: torch.from_numpy(values).float() for name, values in scores.items()},
                dict(json.loads(str(stored["facts"]))),
            )
    # What numpy, zip and zlib raise for a file that is cut, changed or of another kind.
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path}: not a readable file of predictions ({error}); {advice}") from None
