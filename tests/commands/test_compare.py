"""``mavil compare``: reads what evaluations left behind, and says so where they did not."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mavil.evaluation.predictions import write_predictions
from tests.commands.conftest import Outcome
from tests.evaluation.test_comparison import run as predictions

Mavil = Callable[..., Outcome]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Evaluated run folders: a weak one, a strong one with fewer clips, a second seed of it."""
    for name, skill, seed, num_clips in (("weak", 0.5, 0, 60), ("strong", 3.0, 1, 54), ("again", 3.0, 2, 60)):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        write_predictions(tmp_path / name / "evaluation/predictions.npz", predictions(skill, seed, num_clips))
    return ["weak", "strong", "again"]


def test_runs_are_compared(mavil: Mavil, tmp_path: Path, runs: list[str]) -> None:
    found = mavil("compare", "weak", "strong", "--bootstrap", 200)
    assert found.code == 0, found.err
    assert "54 clips that all runs have predicted" in found.out
    assert "weak: 6 more clips, left out" in found.out
    stored = json.loads((tmp_path / "comparison/comparison.json").read_text())
    assert stored["left_out"] == {"weak": [6], "strong": [0]}
    assert [one["metric"] for one in stored["differences"]] == ["accuracy", "map", "auc"]
    accuracy = stored["differences"][0]
    assert accuracy["difference"] == pytest.approx(accuracy["value"] - accuracy["baseline"])
    assert accuracy["low"] > 0
    with (tmp_path / "comparison/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["difference"]) for row in rows] == [one["difference"] for one in stored["differences"]]
    assert rows[1]["p_mcnemar"] == ""
    figure = (tmp_path / "comparison/comparison.svg").read_text()
    assert "strong: accuracy, audio" in figure
    assert {row["name"] for row in csv.DictReader((tmp_path / "comparison/classes.csv").open())} == {
        "bell",
        "dog",
        "rain",
    }
    # A second call replaces the folder; the same seed gives the same numbers.
    (tmp_path / "comparison/old").touch()
    assert mavil("compare", "weak", "strong/evaluation/predictions.npz", "--bootstrap", 200).code == 0
    assert not (tmp_path / "comparison/old").exists()
    again = json.loads((tmp_path / "comparison/comparison.json").read_text())
    assert again["differences"][0]["low"] == accuracy["low"]
    assert (tmp_path / "comparison/comparison.svg").read_text() != figure  # it names the other file


def test_seeds_and_several_runs(mavil: Mavil, tmp_path: Path, runs: list[str]) -> None:
    found = mavil("compare", "weak", "strong,again", "strong", "--bootstrap", 100, "--out", "both")
    assert found.code == 0, found.err
    assert "corrected for 2 runs compared with the baseline" in found.out
    stored = json.loads((tmp_path / "both/comparison.json").read_text())
    assert stored["runs"] == {"weak": 1, "strong,again": 2, "strong": 1}
    first = stored["differences"][0]
    assert first["side"] == "strong,again"
    assert len(first["by_run"]) == 2
    assert first["p_holm"] >= first["p"]


def test_progress_is_shown_of_every_run(mavil: Mavil, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, tuple[int, int]] = {}

    @contextmanager
    def noted(resamples: int) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
        assert resamples == 100
        yield lambda name: lambda done, total: told.update({name: (done, total)})

    monkeypatch.setattr("mavil.commands.compare.shown_progress", noted)
    assert mavil("compare", "weak", "strong,again", "--bootstrap", 100).code == 0
    names = ("weak, audio", "strong,again, run 1, audio", "strong,again, run 2, audio")
    assert told == dict.fromkeys(names, (3, 3))


def test_what_is_missing_is_said(mavil: Mavil, tmp_path: Path, runs: list[str]) -> None:
    (tmp_path / "fresh").mkdir()
    for words, message in (
        (("weak", "fresh"), "fresh: has no evaluation/predictions.npz; run mavil evaluate fresh first"),
        (("weak", "nowhere"), "nowhere: no such run folder or file of predictions"),
        (("weak",), "name two runs or more, the baseline first"),
        (("weak", "weak"), "a run is named twice"),
        (("weak", "strong", "--out", "weak"), "weak: holds something that is not a comparison; choose another folder"),
    ):
        refused = mavil("compare", *words)
        assert refused.code == 2
        assert message in " ".join(refused.err.split())
    assert not (tmp_path / "comparison").exists()
