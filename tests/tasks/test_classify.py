import math

import pytest
import torch

from mavil.models.build import build_classifier
from mavil.tasks.classify import Classification
from tests.support.recipes import random_inputs, tiny_recipe


def make_task(multi_label: bool = False, layers: float = 1.0) -> Classification:
    torch.manual_seed(0)
    recipe = tiny_recipe(task={"kind": "classify", "modalities": ["audio"], "drop_path": 0.0})
    return Classification(build_classifier(recipe, num_classes=4), multi_label)


def test_untrained_head_gives_the_logarithm_of_the_classes() -> None:
    report = make_task().loss(random_inputs(4, num_classes=4), 0)
    assert report.total.item() == pytest.approx(math.log(4), rel=1e-3)
    report = make_task(multi_label=True).loss(random_inputs(4, num_classes=4), 0)
    assert report.total.item() == pytest.approx(math.log(2), rel=1e-3)


def test_layer_decay_scales_learning_rates_by_depth() -> None:
    groups = make_task().parameter_groups(weight_decay=0.05, layer_decay=0.5)
    by_name = {name: group for group in groups for name in group.names}
    assert by_name["head.weight"].lr_scale == 1
    assert by_name["encoders.audio.blocks.1.attn.qkv.weight"].lr_scale == 0.5
    assert by_name["encoders.audio.blocks.0.attn.qkv.weight"].lr_scale == 0.25
    assert by_name["encoders.audio.patch_embed.proj.weight"].lr_scale == 0.125
    assert by_name["head.weight"].weight_decay == 0.05
    assert by_name["head.bias"].weight_decay == 0
    trained = {name for name, p in make_task().model.named_parameters() if p.requires_grad}
    assert set(by_name) == trained
    assert sum(len(group.names) for group in groups) == len(trained)


def test_learns_and_evaluates() -> None:
    task = make_task()
    inputs = random_inputs(8, num_classes=4)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        report = task.loss(inputs, step)
        report.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert report.terms["cross_entropy"].item() < 0.3
    metrics = task.evaluate([inputs])
    assert metrics["accuracy"] == 1
    assert metrics["num_clips"] == 8


def test_without_targets_it_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        make_task().loss(random_inputs(2), 0)
