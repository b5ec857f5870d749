from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mavil.commands.assemble import task_for
from mavil.commands.inspect import inspect_recipe
from mavil.recipe import change_recipe, load_recipe
from mavil.structs import Inputs
from tests.commands.conftest import Outcome
from tests.support.recipes import tiny_recipe

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


OPTIONS = [
    [],
    ["task.masked_views=3"],
    ["task.contrast.audio_mask_ratio=0.5", "task.contrast.video_mask_ratio=0.5"],
    ["task.contrast.pooled_from=fusion_alone", "task.contrast.projection={hidden_width: 64, width: 16}"],
    ["audio.decoder.attention=windowed", "audio.decoder.window=[5, 4]", "fusion.kind=bottleneck"],
    ["joint_decoder=true", "fusion=null", "task.contrast.intra_weight=0"],
]


@pytest.mark.parametrize("changes", OPTIONS, ids=lambda changes: " ".join(changes) or "plain")
def test_cost_is_what_a_counter_counts_in_a_real_loss(changes: list[str]) -> None:
    """torch's counter around the loss of four real clips on the CPU, against the printed numbers of one."""
    recipe = load_recipe(CONFIGS / "tiny/stage1.yaml", changes)
    task = task_for(recipe, None, torch.device("cpu"))
    assert recipe.audio is not None
    assert recipe.video is not None
    inputs = Inputs(
        keys=[str(clip) for clip in range(4)],
        seeds=torch.arange(4),
        audio=torch.randn(4, 1, recipe.audio.num_steps, recipe.audio.num_mel_bins),
        video=torch.randn(4, 3, recipe.video.num_frames, recipe.video.size, recipe.video.size),
    )
    # torch's counter does not know the CPU's own attention kernel; it knows the products that the plain one is made of.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        report = task.loss(inputs, 0)
    with FlopCounterMode(display=False) as backward:
        report.total.backward()  # type: ignore[no-untyped-call]
    printed = inspect_recipe(recipe).multiply_adds
    assert forward.get_total_flops() / 2 / 4 == pytest.approx(printed["forward"], rel=0.02)
    total = forward.get_total_flops() + backward.get_total_flops()
    # The gradient of patches is nobody's, so a step is a little less than three forward passes.
    assert total / 2 / 4 == pytest.approx(printed["training_step"], rel=0.08)


def test_blocks_that_training_may_leave_out_cost_as_others() -> None:
    recipe = change_recipe(tiny_recipe(), "audio.encoder.depth=4")
    dropping = change_recipe(recipe, "audio.encoder.layer_drop=0.9")
    assert inspect_recipe(dropping).multiply_adds == inspect_recipe(recipe).multiply_adds


def test_cost_of_a_teacher_does_not_grow_with_the_views() -> None:
    plain, many = (
        inspect_recipe(load_recipe(CONFIGS / "tiny/stage2.yaml", changes)).multiply_adds
        for changes in ([], ["task.masked_views=4"])
    )
    assert many["teacher"] == plain["teacher"]
    assert many["forward"] > 1.9 * plain["forward"]
    apart = inspect_recipe(load_recipe(CONFIGS / "tiny/stage2.yaml", ["task.teacher.context=separate"])).multiply_adds
    assert apart["teacher"] == plain["audio_encoder_unmasked"] + plain["video_encoder_unmasked"]
