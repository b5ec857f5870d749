from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from mavil import distributed
from mavil.config.task import TokenMasking
from mavil.models.build import build_classifier
from mavil.models.classifier import Classifier
from mavil.models.tokens import patchify
from mavil.structs import UserError
from mavil.tasks.classify import Classification
from mavil.tasks.masks import draw_visible_ids
from mavil.tasks.presence import dropped_presence
from mavil.tasks.views import noise_of
from tests.support.ranks import run_in_ranks
from tests.support.recipes import random_inputs, slice_inputs, tiny_recipe


def make_task(
    multi_label: bool = False, has_gaps: bool = False, masking: TokenMasking | None = None, **settings: Any
) -> Classification:
    """Of the sound alone unless ``modalities`` say more; 4 classes."""
    torch.manual_seed(0)
    settings = {"kind": "classify", "modalities": ["audio"], "drop_path": 0.0, **settings}
    # Separate heads go without a fusion.
    recipe = tiny_recipe(task=settings, **({"fusion": None} if settings.get("heads") == "separate" else {}))
    model = build_classifier(recipe, num_classes=4)
    dropout = settings.get("modality_dropout", 0.0)
    return Classification(model, multi_label, modality_dropout=dropout, has_gaps=has_gaps, masking=masking)


def make_both(**settings: Any) -> Classification:
    """Of sound and picture, with heads that say something."""
    task = make_task(modalities=["audio", "video"], **settings)
    for name, parameter in task.model.named_parameters():
        if name.endswith("head.weight"):
            torch.nn.init.normal_(parameter)
    return task


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
    assert by_name["encoders.audio.cls_token"].weight_decay == 0
    assert by_name["encoders.audio.cls_token"].lr_scale == 0.125
    trained = {name for name, p in make_task().model.named_parameters() if p.requires_grad}
    assert set(by_name) == trained
    assert sum(len(group.names) for group in groups) == len(trained)


@pytest.mark.parametrize("heads", ["joint", "separate"])
def test_learns_and_evaluates(heads: str) -> None:
    task = make_both(heads=heads)
    inputs = random_inputs(8, num_classes=4)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        report = task.loss(inputs, step)
        report.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert report.total.item() < 0.3
    prefixes = {"joint": ("",), "separate": ("audio/", "video/")}[heads]
    metrics = task.evaluate([inputs])
    for prefix in prefixes:
        assert metrics[f"{prefix}accuracy"] == 1
        assert metrics[f"{prefix}num_clips"] == 8
    assert {name.rpartition("/")[0] for name in metrics} == {prefix.rstrip("/") for prefix in prefixes}


def test_training_leaves_out_whole_rows_of_sound_and_tokens_of_pictures_and_evaluation_nothing() -> None:
    masking = TokenMasking(time_ratio=0.5, mel_ratio=0.5, video_ratio=0.75)
    task, inputs = make_both(masking=masking), random_inputs(4, num_classes=4)
    patches = {m: patchify(inputs.of(m), grid) for m, grid in task.grids.items()}
    ids = draw_visible_ids(masking, task.grids, noise_of(inputs))
    assert {m: values.shape for m, values in ids.items()} == {"audio": (4, 2), "video": (4, 2)}
    assert inputs.targets is not None
    expected = F.cross_entropy(task.model(patches, None, ids)["joint"], inputs.targets.argmax(1))
    assert task.loss(inputs, 0).total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(task._predict(inputs)["joint"], task.model(patches)["joint"])
    # The sound alone, in time alone: half of the four steps, every one with both bands.
    only_time = draw_visible_ids(TokenMasking(time_ratio=0.5), task.grids, noise_of(inputs))
    assert set(only_time) == {"audio"}
    assert [len(set((row // 2).tolist())) for row in only_time["audio"]] == [2] * 4


@pytest.mark.parametrize("multi_label", [False, True])
def test_shares_of_labels_are_learned_as_shares(multi_label: bool) -> None:
    task, inputs = make_task(multi_label), random_inputs(2, num_classes=4)
    torch.nn.init.normal_(task.model.get_submodule("head").weight)  # type: ignore[arg-type]
    inputs.targets = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    patches = {m: patchify(inputs.of(m), grid) for m, grid in task.grids.items()}
    scores = task.model(patches)["joint"]
    if multi_label:
        errors = inputs.targets * F.logsigmoid(scores) + (1 - inputs.targets) * F.logsigmoid(-scores)
        expected = -errors.mean()
    else:
        expected = -(inputs.targets * scores.log_softmax(dim=1)).sum(dim=1).mean()
    assert task.loss(inputs, 0).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_targets_it_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        make_task().loss(random_inputs(2), 0)


@pytest.mark.parametrize("multi_label", [False, True])
def test_separate_heads_learn_from_the_clips_that_have_their_modality(multi_label: bool) -> None:
    task = make_both(heads="separate", multi_label=multi_label)
    inputs = random_inputs(4, num_classes=4)
    has_video = torch.tensor([True, False, True, True])
    report = task.loss(dataclasses.replace(inputs, video_present=has_video), 0)
    kind = "binary_cross_entropy" if multi_label else "cross_entropy"
    assert set(report.terms) == {f"audio_{kind}", f"video_{kind}"}
    assert report.total.item() == pytest.approx(sum(term.item() for term in report.terms.values()))
    patches = {m: patchify(inputs.of(m), grid) for m, grid in task.grids.items()}
    scores, targets = task.model(patches), inputs.targets
    assert targets is not None
    for modality, rows in (("audio", torch.ones(4, dtype=torch.bool)), ("video", has_video)):
        logits, wanted = scores[modality][rows], targets[rows]
        right = logits.argmax(1) == wanted.argmax(1)
        expected = (
            F.binary_cross_entropy_with_logits(logits, wanted)
            if multi_label
            else F.cross_entropy(logits, wanted.argmax(1))
        )
        assert report.terms[f"{modality}_{kind}"].item() == pytest.approx(expected.item(), rel=1e-5)
        if not multi_label:
            assert float(report.scalars[f"{modality}_accuracy"]) == pytest.approx(right.float().mean().item())


def gradient_of_gaps(has_video: list[bool]) -> tuple[dict[str, float], torch.Tensor]:
    """Terms and the gradient of the shared loss, both as means over ranks: each has its share of the clips."""
    task = make_both(heads="separate", has_gaps=True)
    rank, size = distributed.rank(), len(has_video) // distributed.world_size()
    everything = random_inputs(len(has_video), num_classes=4)
    inputs = slice_inputs(everything, rank * size, (rank + 1) * size)
    flags = torch.tensor(has_video)[rank * size : (rank + 1) * size]
    if not flags.all():  # as the loader does: who has everything says nothing
        inputs.video_present = flags
    report = task.loss(inputs, 0)
    report.total.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])
    terms = {name: float(distributed.mean_over_ranks(value.detach())) for name, value in report.terms.items()}
    return terms, distributed.mean_over_ranks(gradient)


@pytest.mark.parametrize("has_video", [[True, True, False, True], [True, True, False, False], [False] * 4], ids=str)
def test_ranks_whose_clips_lack_different_things_equal_one_process(has_video: list[bool]) -> None:
    terms, gradient = gradient_of_gaps(has_video)
    for found, own in run_in_ranks(gradient_of_gaps, has_video):
        assert found == pytest.approx(terms, rel=1e-5)
        torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-6)


def test_label_smoothing_is_that_of_torch() -> None:
    inputs = random_inputs(4, num_classes=4)
    model = cast(Classifier, make_both().model)
    report = Classification(model, False, label_smoothing=0.3).loss(inputs, 0)
    scores = model({m: patchify(inputs.of(m), grid) for m, grid in model.grids().items()})
    assert inputs.targets is not None
    expected = F.cross_entropy(scores["joint"], inputs.targets.argmax(1), label_smoothing=0.3)
    assert report.total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"heads": "separate"}, {"pooling": "mean"}])
def test_nobody_has_video_and_everything_is_still_trained(settings: dict[str, Any]) -> None:
    task = make_both(**settings)
    inputs = dataclasses.replace(random_inputs(3, num_classes=4), video_present=torch.zeros(3, dtype=torch.bool))
    report = task.loss(inputs, 0)
    report.total.backward()  # type: ignore[no-untyped-call]
    assert report.total.isfinite()
    trained = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    for name, parameter in trained.items():
        if "video" in name:
            assert parameter.grad is not None
            assert not parameter.grad.any(), name
    if "heads" in settings:
        assert report.terms["video_cross_entropy"].item() == 0


def test_modality_dropout_is_for_training_only_and_follows_the_clips_seeds() -> None:
    inputs = random_inputs(6, num_classes=4)
    task, plain = make_both(modality_dropout=0.5), make_both()
    flags = dropped_presence(inputs, tuple(task.grids), 0.5)
    told = dataclasses.replace(inputs, audio_present=flags["audio"], video_present=flags["video"])
    assert torch.equal(task.loss(inputs, 0).total, plain.loss(told, 0).total)
    assert torch.equal(task.loss(inputs, 0).total, task.loss(inputs, 1).total)
    assert not torch.equal(task.loss(inputs, 0).total, plain.loss(inputs, 0).total)
    task.model.eval()
    plain.model.eval()
    assert task.evaluate([inputs]) == plain.evaluate([inputs])


@pytest.mark.parametrize("heads", ["joint", "separate"])
def test_evaluation_judges_each_clip_by_what_it_has(heads: str) -> None:
    task = make_both(heads=heads)
    task.model.eval()
    inputs = random_inputs(6, num_classes=4)
    # The first batch has everything; nobody has video in the second, and the last clip has nothing at all.
    first, second = slice_inputs(inputs, 0, 3), slice_inputs(inputs, 3, 6)
    second.audio_present, second.video_present = torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.bool)
    metrics = task.evaluate([first, second])
    if heads == "joint":
        assert metrics["num_clips"] == 5
        return
    assert (metrics["audio/num_clips"], metrics["video/num_clips"]) == (5, 3)
    alone = task.evaluate([first])
    for name, value in alone.items():
        if name.startswith("video/"):
            assert metrics[name] == value
    only_sound = task.evaluate([second])
    assert {name.partition("/")[0] for name in only_sound} == {"audio"}


def test_evaluation_does_not_look_at_what_clips_lack() -> None:
    task = make_both()
    task.model.eval()
    inputs = random_inputs(8, num_classes=4)
    has_video = torch.arange(8) % 2 == 0
    other = inputs.of("video").clone()
    other[~has_video] *= -30
    told = dataclasses.replace(inputs, video_present=has_video)
    assert task.evaluate([dataclasses.replace(told, video=other)]) == task.evaluate([told])
    assert task.evaluate([dataclasses.replace(inputs, video=other)]) != task.evaluate([told])


def test_a_modality_that_nobody_has_is_neither_read_nor_computed() -> None:
    task = make_both()
    task.model.eval()
    inputs = random_inputs(4, num_classes=4)
    hidden = dataclasses.replace(inputs, video_present=torch.zeros(4, dtype=torch.bool))
    expected = task.evaluate([hidden])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task.model.encoders["video"], "forward", None)  # type: ignore[index]
        assert task.evaluate([dataclasses.replace(hidden, video=None)]) == expected


def test_a_set_without_anything_to_judge_is_refused() -> None:
    task = make_task()
    inputs = dataclasses.replace(random_inputs(2, num_classes=4), audio_present=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(UserError, match="no clip of the evaluation set has audio"):
        task.evaluate([inputs])
