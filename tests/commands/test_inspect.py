from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.commands.inspect import inspect_recipe
from mavil.recipe import load_recipe
from tests.commands.conftest import Outcome

CONFIGS = Path(__file__).parents[2] / "configs"


def test_paper_scale_numbers() -> None:
    """Parameters, tokens and multiply-adds that the paper prints or that follow from its sizes."""
    result = inspect_recipe(load_recipe(CONFIGS / "pretrain/mavil_stage1.yaml"))
    millions = {name: count / 1e6 for name, count in result.parameters.items()}
    assert millions["audio_encoder"] == pytest.approx(85.25, abs=0.01)
    assert millions["video_encoder"] == pytest.approx(86.24, abs=0.01)
    assert millions["audio_decoder"] == pytest.approx(25.75, abs=0.01)
    assert millions["video_decoder"] == pytest.approx(26.40, abs=0.01)
    assert result.tokens["audio"] == {"grid": [64, 8], "patch": [16, 16], "tokens": 512, "visible": 102}
    assert result.tokens["video"] == {"grid": [4, 14, 14], "patch": [2, 16, 16], "tokens": 784, "visible": 156}
    assert result.multiply_adds["audio_encoder_unmasked"] / 1e9 == pytest.approx(48.5, abs=0.05)
    assert result.multiply_adds["video_encoder_unmasked"] / 1e9 == pytest.approx(79.0, abs=0.5)
    # Two views of each encoder, fusion, two decoders: about 91 G.
    assert result.multiply_adds["forward"] / 1e9 == pytest.approx(91, abs=2)
    assert len(result.learning_rate) == 5


def test_stage_two_counts_the_teacher() -> None:
    result = inspect_recipe(load_recipe(CONFIGS / "pretrain/mavil_stage2.yaml"))
    assert result.multiply_adds["teacher"] / 1e9 == pytest.approx(150, abs=5)


def test_peak_of_the_printed_learning_rates_is_the_scaled_one() -> None:
    result = inspect_recipe(load_recipe(CONFIGS / "pretrain/mavil_stage1.yaml"), ranks=64)
    assert max(result.learning_rate.values()) == pytest.approx(4e-4)


def test_json_and_tables(mavil: Callable[..., Outcome]) -> None:
    path = CONFIGS / "tiny/stage1.yaml"
    shown = mavil("inspect", path, "--json")
    assert json.loads(shown.out)["recipe"]["name"] == "tiny_stage1"
    assert "learning rate" in mavil("inspect", path, "seed=3").out
