from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mavil import distributed
from mavil.config import Contrast, PretrainTask, Reconstruction
from mavil.losses.contrastive import symmetric_info_nce
from mavil.models.build import build_masked
from mavil.structs import MODALITIES, Inputs, LossReport
from mavil.tasks.pretrain import Pretraining
from mavil.tasks.teacher import Teacher
from mavil.tasks.views import ViewPlan
from tests.support.ranks import run_in_ranks
from tests.support.recipes import random_inputs, slice_inputs, tiny_recipe

CONTRAST = Contrast(inter_weight=0.7, intra_weight=0.3, inter_temperature=0.2, intra_temperature=0.5)


def make_task(with_teacher: bool = False, **changes: Any) -> Pretraining:
    torch.manual_seed(0)
    discriminates = changes.get("discrimination") is not None
    recipe = tiny_recipe(task={"kind": "pretrain", "patch_discrimination": {} if discriminates else None})
    assert isinstance(recipe.task, PretrainTask)
    teacher = Teacher(build_masked(recipe), last_layers=1, normalise=True) if with_teacher else None
    model = build_masked(recipe, {"audio": 32, "video": 32} if with_teacher else None)
    settings: dict[str, Any] = {"reconstruction": Reconstruction(), "contrast": CONTRAST, **changes}
    grids = {m: model.grid(m) for m in MODALITIES}
    plan = ViewPlan.of(grids, dict.fromkeys(MODALITIES, 0.75), settings["contrast"], settings.pop("masked_views", 1))
    return Pretraining(model, plan, teacher=teacher, **settings)


def loss_and_gradients(task: Pretraining, inputs: Inputs) -> tuple[LossReport, dict[str, Tensor]]:
    report = task.loss(inputs, step=0)
    report.total.backward()  # type: ignore[no-untyped-call]
    model = getattr(task.model, "module", task.model)
    assert isinstance(model, nn.Module)
    return report, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_rank_of_two(with_teacher: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
    task = make_task(with_teacher)
    task.model = DistributedDataParallel(task.model.double())
    if task.teacher is not None:
        task.teacher.model.double()
    start = 4 * distributed.rank()
    report, gradients = loss_and_gradients(task, double(slice_inputs(random_inputs(8), start, start + 4)))
    return {name: value.item() for name, value in report.terms.items()}, gradients


def double(inputs: Inputs) -> Inputs:
    assert inputs.audio is not None
    assert inputs.video is not None
    inputs.audio, inputs.video = inputs.audio.double(), inputs.video.double()
    return inputs


@pytest.mark.parametrize("with_teacher", [False, True])
def test_two_ranks_equal_one_rank_on_the_joined_batch(with_teacher: bool) -> None:
    task = make_task(with_teacher)
    task.model.double()
    if task.teacher is not None:
        task.teacher.model.double()
    report, gradients = loss_and_gradients(task, double(random_inputs(8)))
    ranks = run_in_ranks(one_rank_of_two, with_teacher)
    for name, value in report.terms.items():
        assert sum(terms[name] for terms, _ in ranks) / 2 == pytest.approx(value.item(), rel=1e-12)
    for _, rank_gradients in ranks:
        assert rank_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(rank_gradients[name], gradient, rtol=1e-9, atol=1e-12)


def two_steps_without_contrast() -> list[float]:
    task = make_task(contrast=None)
    task.model = DistributedDataParallel(task.model)
    start = 4 * distributed.rank()
    return [
        loss_and_gradients(task, slice_inputs(random_inputs(8), start, start + 4))[0].total.item() for _ in range(2)
    ]


def test_several_ranks_train_without_contrast() -> None:
    # The second backward pass fails where a parameter got no gradient in the first.
    assert all(len(losses) == 2 for losses in run_in_ranks(two_steps_without_contrast))


def test_every_term_is_there_with_its_weight_and_the_total_is_their_sum() -> None:
    report, _ = loss_and_gradients(make_task(), random_inputs(4))
    assert report.weights == {
        "audio_reconstruction": 1.0,
        "video_reconstruction": 1.0,
        "inter_contrast": 0.7,
        "audio_intra_contrast": 0.3,
        "video_intra_contrast": 0.3,
    }
    expected = sum(report.weights[name] * value.item() for name, value in report.terms.items())
    assert report.total.item() == pytest.approx(expected, rel=1e-6)
    assert report.scalars["num_negatives"] == 3


def test_inter_modal_term_compares_view_one_and_intra_modal_terms_compare_views() -> None:
    task = make_task()
    inputs = random_inputs(4)
    output = task.model(task.patches(inputs), task.views(inputs, task.plan))
    report = task.loss(inputs, 0)
    audio, video = output.pooled["audio"], output.pooled["video"]
    for name, pair, temperature in (
        ("inter_contrast", (audio[0], video[0]), 0.2),
        ("audio_intra_contrast", (audio[0], audio[1]), 0.5),
        ("video_intra_contrast", (video[0], video[1]), 0.5),
    ):
        torch.testing.assert_close(report.terms[name], symmetric_info_nce(*pair, temperature).loss)


def test_reconstruction_counts_the_masked_tokens_and_no_other() -> None:
    task = make_task(contrast=None)
    inputs = random_inputs(2)
    patches, views = task.patches(inputs), task.views(inputs, task.plan)
    predictions = task.model(patches, views).predictions["audio"][0]
    target, view = task.targets(patches)["audio"], views["audio"].predicted[0]
    errors = [
        (predictions[clip, token] - target[clip, token]).square().mean()
        for clip in range(2)
        for token in view.masked_ids[clip].tolist()
    ]
    torch.testing.assert_close(task.loss(inputs, 0).terms["audio_reconstruction"], torch.stack(errors).mean())


def test_stage_two_keeps_the_contrast_and_predicts_the_teacher_without_moving_it() -> None:
    task = make_task(with_teacher=True)
    assert task.teacher is not None
    before = {name: p.clone() for name, p in task.teacher.model.named_parameters()}
    report, gradients = loss_and_gradients(task, random_inputs(4))
    assert set(report.terms) == {
        "audio_teacher",
        "video_teacher",
        "inter_contrast",
        "audio_intra_contrast",
        "video_intra_contrast",
    }
    assert all(p.grad is None for p in task.teacher.model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in task.teacher.model.named_parameters())
    assert not any("teacher" in name for name in gradients)


def test_teacher_sees_the_unmasked_pair() -> None:
    task = make_task(with_teacher=True)
    inputs = random_inputs(2)
    patches = task.patches(inputs)
    before = task.targets(patches)
    for modality in ("audio", "video"):
        changed = {m: p.clone() for m, p in patches.items()}
        changed[modality][:, -1] += 1  # type: ignore[index]
        after = task.targets(changed)  # type: ignore[arg-type]
        # Any patch of either modality reaches every target token of both.
        assert (after["audio"] != before["audio"]).any(-1).all()
        assert (after["video"] != before["video"]).any(-1).all()


def test_zero_weights_switch_terms_and_the_second_view_off() -> None:
    report = make_task(contrast=Contrast(inter_weight=0.1, intra_weight=0)).loss(random_inputs(4), 0)
    assert set(report.terms) == {"audio_reconstruction", "video_reconstruction", "inter_contrast"}
    assert len(make_task(contrast=None).loss(random_inputs(4), 0).terms) == 2


def test_masks_depend_on_the_clip_not_on_its_place_in_the_batch() -> None:
    task = make_task()
    together = task.views(random_inputs(6), task.plan)
    alone = task.views(slice_inputs(random_inputs(6), 4, 5), task.plan)
    for modality, views in together.items():
        for view, other in zip(views.compared, alone[modality].compared, strict=True):
            assert torch.equal(view.visible_ids[4:5], other.visible_ids)
        assert not torch.equal(views.compared[0].visible_ids, views.compared[1].visible_ids)


def test_evaluation_repeats_itself_whatever_the_batches() -> None:
    task = make_task()
    inputs = random_inputs(7)
    once = task.evaluate([inputs])
    split = task.evaluate([slice_inputs(inputs, 0, 3), slice_inputs(inputs, 3, 7)])
    assert once == pytest.approx(split, rel=1e-4)
    assert once["gallery_size"] == 7


def test_a_few_clips_can_be_learned_by_heart() -> None:
    task = make_task(contrast=Contrast(inter_weight=1.0, intra_weight=0.0))
    inputs = random_inputs(8)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    first = task.loss(inputs, 0).terms["inter_contrast"].item()
    for step in range(60):
        optimizer.zero_grad()
        inputs.seeds = torch.arange(8) + 100 * step  # other masks, same clips
        report = task.loss(inputs, step)
        report.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert report.terms["inter_contrast"].item() < first / 4
    assert task.evaluate([inputs])["audio_to_video/recall_at_1_percent"] == 100
