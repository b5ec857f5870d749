"""``mavil measure`` on a run of three steps, and the numbers it is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mavil.commands.inspect import inspect_recipe
from mavil.commands.measure import check_fields, probe_scores, stored_measurement, training_seconds
from mavil.pipelines.ablation import Measure
from mavil.recipe import load_recipe
from mavil.structs import UserError
from tests.commands.conftest import NUM_GALLERY, Outcome

Mavil = Callable[..., Outcome]
STEPS, BATCH = 3, 8


def test_a_run_is_measured_once_for_each_checkpoint_and_question(mavil: Mavil, recipe: Callable[..., Path]) -> None:
    path = recipe("tiny", steps=STEPS)
    assert mavil("train", path, "--out", "run").code == 0
    asked = ("run", "--probes", "label,pitch_hz", "--within", "carrier_phase")
    outcome = mavil("measure", *asked)
    assert outcome.code == 0, outcome.err
    wanted = Measure(("label", "pitch_hz"), True, ("carrier_phase",))
    measures = stored_measurement(Path("run"), wanted)
    assert measures is not None
    for probe in ("probe/label", "probe/pitch_hz"):
        assert {f"{probe}/{name}" for name in ("audio", "video", "both", "chance")} <= set(measures)
    assert measures["retrieval/chance R@1"] == pytest.approx(100 / NUM_GALLERY)
    # Every clip has a phase of its own: alone in its group it is found.
    assert measures["retrieval within one carrier_phase/video to audio R@1"] == 100
    cost = inspect_recipe(load_recipe("run/config.yaml")).multiply_adds["training_step"]
    assert measures["cost/clips"] == STEPS * BATCH
    assert measures["cost/T multiply-adds"] == pytest.approx(cost * STEPS * BATCH / 1e12)
    assert measures["cost/training s"] > 0
    last = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines() if "loss/total" in line][-1]
    assert (last["step"], measures["loss/total"]) == (STEPS, last["metrics"]["loss/total"])

    assert stored_measurement(Path("run"), Measure(("label",))) is None  # another question
    manifest = Path(f"run/checkpoints/step_{STEPS:08d}/manifest.json")
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0'))
    assert stored_measurement(Path("run"), wanted) is None  # another checkpoint


def test_probes_see_each_modality_and_both_side_by_side() -> None:
    """Sound tells the first half of the label, the picture the second: only both tell it whole."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (200, 2), generator=generator)
    noise = 0.05 * torch.randn(2, 200, 1, generator=generator)
    rows = {"audio": bits[:, :1] + noise[0], "video": bits[:, 1:] + noise[1]}
    labels = [f"{a}{v}" for a, v in bits.tolist()]
    train, test = ({name: row[part] for name, row in rows.items()} for part in (slice(0, 150), slice(150, 200)))
    scores = probe_scores(train, labels[:150], test, labels[150:])
    assert scores["both"] == 100
    assert 30 < scores["audio"] < 75
    assert 30 < scores["video"] < 75
    assert set(probe_scores({"audio": train["audio"]}, labels[:150], {"audio": test["audio"]}, labels[150:])) == {
        *("audio", "chance"),
    }
    values = (bits[:, 0] + noise[0, :, 0]).tolist()
    assert probe_scores(train, values[:150], test, values[150:])["audio"] > 0.99


def test_training_seconds_come_from_the_speeds() -> None:
    """Ten steps of 8 clips at 4 clips/s, ten at 16, an evaluation between them."""
    lines = [
        {"step": 10, "conditions": {"time": 0.0, "speed/clips_per_second": 4.0}},
        {"step": 10, "conditions": {"time": 500.0}},
        {"step": 20, "conditions": {"time": 505.0, "speed/clips_per_second": 16.0}},
    ]
    assert training_seconds(lines, 8) == 25


def test_a_field_that_the_clips_lack_is_found_before_anything_is_trained(recipe: Callable[..., Path]) -> None:
    tiny = load_recipe(recipe("tiny"))
    check_fields(tiny, Measure(("label", "pitch_hz"), True, ("carrier_phase",)))
    for wanted in (Measure(("speaker",)), Measure((), True, ("speaker",))):
        with pytest.raises(UserError, match=r"gallery: a clip has no metadata field 'speaker'; it has seed, number"):
            check_fields(tiny, wanted)


def test_mistakes_are_one_line(mavil: Mavil, tmp_path: Path) -> None:
    assert "nowhere: no such run folder" in mavil("measure", "nowhere").err
    (tmp_path / "empty").mkdir()
    outcome = mavil("measure", "empty")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "has no checkpoint to measure" in outcome.err
