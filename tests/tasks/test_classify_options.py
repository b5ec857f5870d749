"""Fine-tuning's options: learning rates per part, and that all options act together, each as it is meant to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.commands.assemble import task_for
from mavil.commands.inputs import prepare_for
from mavil.config import Recipe
from mavil.data.labels import Vocabulary
from mavil.data.loading.batches import stack_samples
from mavil.recipe import change_recipe
from mavil.structs import Batch, Inputs, Sample
from mavil.tasks.classify import Classification
from tests.support.recipes import tiny_recipe

CPU = torch.device("cpu")
STATISTICS = ["audio.mean=-4", "audio.std=4"]


def tuning(*changes: str) -> Recipe:
    return change_recipe(tiny_recipe(task={"kind": "classify"}), *STATISTICS, *changes)


def task_of(recipe: Recipe) -> Classification:
    torch.manual_seed(0)
    task = task_for(recipe, Vocabulary(("a", "b", "c")), CPU)
    assert isinstance(task, Classification)
    for name, parameter in task.model.named_parameters():
        if name.endswith("head.weight"):
            torch.nn.init.normal_(parameter)
    return task


def scales(*changes: str) -> dict[str, float]:
    """The factor of each parameter's learning rate at layer decay 0.5; two blocks per encoder, three in the fusion."""
    groups = task_of(tuning("fusion.depth=3", *changes)).parameter_groups(weight_decay=0.05, layer_decay=0.5)
    found = {name: group.lr_scale for group in groups for name in group.names}
    assert len(found) == sum(len(group.names) for group in groups)
    return found


def test_factors_multiply_layer_decay_part_by_part() -> None:
    plain = scales()
    factors = {"encoders.audio": 0.1, "encoders.video": 0.5, "fusion": 2.0, "head": 10.0, "fc_norm": 10.0}
    changed = scales("optimizer.lr_factors={audio_encoder: 0.1, video_encoder: 0.5, fusion: 2, head: 10}")
    assert changed.keys() == plain.keys()
    for name, scale in changed.items():
        (factor,) = [value for part, value in factors.items() if name.startswith(f"{part}.")]
        assert scale == pytest.approx(factor * plain[name]), name
    assert plain["encoders.video.blocks.0.attn.qkv.weight"] == 0.25
    apart = scales("optimizer.lr_factors.head=3", "task.heads=separate", "fusion=null")
    assert (apart["video_head.weight"], apart["audio_fc_norm.bias"]) == (3, 3)
    assert apart["encoders.audio.blocks.1.norm1.bias"] == 0.5


@pytest.mark.parametrize(("kind", "stacks"), [("joint", ["blocks"]), ("bottleneck", ["audio_blocks", "video_blocks"])])
def test_fusion_blocks_rank_as_the_first_blocks_where_that_is_asked_for(kind: str, stacks: list[str]) -> None:
    fusion = f"fusion={{kind: {kind}, depth: 3}}"
    plain, first = scales(fusion), scales(fusion, "optimizer.fusion_rank=first_blocks")
    assert {scale for name, scale in plain.items() if name.startswith("fusion.")} == {1.0}
    for stack in stacks:
        for block, scale in enumerate((0.25, 0.5, 1.0)):  # an encoder of two blocks has its head at depth 3
            assert first[f"fusion.{stack}.{block}.mlp.fc1.weight"] == scale
    others = {name for name in plain if f"{stacks[0][-6:]}." not in name or not name.startswith("fusion.")}
    assert {name: first[name] for name in others} == {name: plain[name] for name in others}


def batch() -> Batch:
    """Four clips; one lacks sound, one frames."""
    noise = torch.Generator().manual_seed(1)
    clips = [
        Sample(
            key=str(seed),
            seed=seed,
            waveform=None if seed == 5 else torch.randn(9000, generator=noise),
            frames=None if seed == 6 else torch.randint(0, 256, (4, 3, 36, 40), dtype=torch.uint8, generator=noise),
        )
        for seed in (3, 4, 5, 6, 7, 8)
    ]
    stacked = stack_samples(clips, None)
    stacked.targets = torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    return stacked


OPTIONS = {
    "audio.augment.masked_steps": 20,
    "audio.augment.masked_mel_bins": 10,
    "audio.augment.noise": "true",
    "task.masking.time_ratio": 0.25,
    "task.masking.mel_ratio": 0.5,
    "task.masking.video_ratio": 0.5,
    "task.mixup.probability": 0.5,
    "task.cutmix.probability": 0.5,
    "task.drop_path": 0.5,
    "task.modality_dropout": 0.5,
    "task.label_smoothing": 0.1,
    "data.missing_modality": "keep",
}
OFF = {"audio.augment.noise": "false", "data.missing_modality": "skip"}


def learned(changes: list[str]) -> tuple[Tensor, dict[str, Tensor], Inputs]:
    """The loss of one training step, its gradients, and what the model was given."""
    recipe = tuning(*changes)
    inputs = prepare_for(recipe, CPU, training=True)(batch())
    task = task_of(recipe)
    task.model.train()
    torch.manual_seed(7)
    loss = task.loss(inputs, 0).total
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, inputs


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_all_options_work_together_and_each_of_them_does_something(loss: str) -> None:
    on: dict[str, Any] = dict(OPTIONS)
    if loss == "binary_cross_entropy":
        del on["task.label_smoothing"]  # refused with it
    everything = [f"task.loss={loss}", *(f"{name}={value}" for name, value in on.items())]
    total, gradients, inputs = learned(everything)
    again, _, _ = learned(everything)
    assert torch.equal(total, again)
    assert total.isfinite()
    trained = {name for name, p in task_of(tuning(*everything)).model.named_parameters() if p.requires_grad}
    assert set(gradients) == trained
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert inputs.targets is not None
    shares = inputs.targets.amax(dim=1)
    assert shares[[2, 3]].tolist() == [1, 1]  # what lacks a modality is neither mixed nor cut
    assert (shares < 1).sum() == 4
    for name in on:
        if name == "data.missing_modality":
            continue  # says what the loader gives; without it these clips would not be here
        without = [change for change in everything if not change.startswith(name)] + [f"{name}={OFF.get(name, 0)}"]
        other, changed, _ = learned(without)
        assert not torch.equal(other, total), name
        assert not torch.equal(changed["head.weight"], gradients["head.weight"]), name


def test_evaluation_sees_none_of_them() -> None:
    recipe = tuning(*(f"{name}={value}" for name, value in OPTIONS.items()))
    plain, tuned = (prepare_for(r, CPU, training=False)(batch()) for r in (tuning(), recipe))
    for modality in ("audio", "video"):
        assert torch.equal(plain.of(modality), tuned.of(modality))  # type: ignore[arg-type]
    task, other = task_of(recipe), task_of(tuning("data.missing_modality=keep"))
    for model in (task.model, other.model):
        model.eval()
    assert task.evaluate([tuned]) == other.evaluate([plain])


def test_smoothed_labels_of_mixed_clips_are_smoothed_shares() -> None:
    """torch's rule: (1 - e) of the shares and e spread over the classes, whether a clip is mixed or not."""
    task = task_of(tuning("task.label_smoothing=0.2"))
    scores, shares = torch.randn(2, 3), torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    wanted = 0.8 * shares + 0.2 / 3
    expected = -(wanted * scores.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task._cross_entropy(scores, shares, "mean"), expected)
