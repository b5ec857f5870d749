"""The file of predictions: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mavil.evaluation.predictions import Predictions, read_predictions, write_predictions
from mavil.structs import UserError


def predictions() -> Predictions:
    """Three clips, two classes; the second clip has no sound."""
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(3, 2, generator=generator) for name in ("audio", "video", "audio+video")}
    scores["audio"][1] = torch.nan
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    facts = {"windows": 10, "left_out": {"no_label": 1}, "run": "läufe/ä"}
    return Predictions(["a", "b ü", "c"], ("dog, barking", "café"), targets, True, scores, facts)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path, written = tmp_path / "predictions.npz", predictions()
    path.write_bytes(b"the old one")
    write_predictions(path, written)
    read = read_predictions(path)
    assert (read.keys, read.classes, read.multi_label) == (written.keys, written.classes, True)
    assert read.facts == written.facts
    assert torch.equal(read.targets, written.targets)
    assert read.targets.dtype == torch.float32
    assert list(read.scores) == list(written.scores)
    for name, scores in written.scores.items():
        assert torch.equal(read.scores[name].nan_to_num(7), scores.nan_to_num(7))
    assert read.judged("audio").tolist() == [True, False, True]
    assert read.judged("video").all()
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]
    write_predictions(path, dataclasses.replace(written, multi_label=False))
    assert read_predictions(path).multi_label is False


@pytest.mark.parametrize(
    "change",
    [
        {"keys": ["b", "a", "c"]},
        {"keys": ["a", "a", "c"]},
        {"classes": ("one",)},
        {"targets": torch.zeros(2, 2)},
        {"scores": {"audio": torch.zeros(3, 1)}},
        {"scores": {"audio": torch.tensor([[0.0, torch.nan]] * 3)}},
        {"scores": {"audio": torch.full((3, 2), torch.inf)}},
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"keys|targets|scores"):
        dataclasses.replace(predictions(), **change)  # type: ignore[arg-type]


def test_damaged_and_foreign_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    with pytest.raises(UserError, match="no such file"):
        read_predictions(path)
    write_predictions(path, predictions())
    whole = path.read_bytes()
    for damage in (b"", b"text", whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"predictions\.npz: not a readable file of predictions"):
            read_predictions(path)
    np.savez(path, keys=np.array(["a"]))
    with pytest.raises(UserError, match="not a readable file of predictions"):
        read_predictions(path)
    np.savez(path, format=np.array("mavil predictions 2"))
    with pytest.raises(UserError, match="its format is 'mavil predictions 2', not 'mavil predictions 1'"):
        read_predictions(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UserError, match="not a readable file of predictions"):
        read_predictions(tmp_path / "array.npy")
    np.savez(path, format=np.array([object()]))
    with pytest.raises(UserError, match="not a readable file of predictions"):
        read_predictions(path)
