"""Pre-training with what the paper leaves open, and with clips that lack a modality."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mavil import distributed
from mavil.config import Contrast, Reconstruction
from mavil.config.task import PatchDiscrimination
from mavil.losses.patch_discrimination import patch_discrimination
from mavil.models.layers import Presence
from mavil.structs import Inputs, Modality
from mavil.tasks.pretrain import Pretraining
from tests.support.ranks import run_in_ranks
from tests.support.recipes import random_inputs, slice_inputs
from tests.tasks.test_pretrain import CONTRAST, double, loss_and_gradients, make_task

DISCRIMINATION = PatchDiscrimination(weight=0.5)
HAS_AUDIO = torch.tensor([True, False, True, True, True, True, False, True])
HAS_VIDEO = torch.tensor([True, True, True, False, True, True, True, True])


def with_gaps(inputs: Inputs, start: int = 0) -> Inputs:
    """Clips 1 and 6 have no sound and clip 3 no picture, as the loader would hand them over."""
    assert inputs.audio is not None
    assert inputs.video is not None
    stop = start + len(inputs)
    inputs.audio_present, inputs.video_present = HAS_AUDIO[start:stop], HAS_VIDEO[start:stop]
    inputs.audio = inputs.audio * inputs.audio_present[:, None, None, None]
    inputs.video = inputs.video * inputs.video_present[:, None, None, None, None]
    return inputs


def gap_task(**changes: Any) -> Pretraining:
    return make_task(has_gaps=True, **changes)


def rows(inputs: Inputs, keep: Tensor) -> Inputs:
    places = keep.nonzero().flatten().tolist()
    assert inputs.audio is not None
    assert inputs.video is not None
    return Inputs([inputs.keys[i] for i in places], inputs.seeds[keep], inputs.audio[keep], inputs.video[keep])


def test_the_teacher_runs_once_however_many_views_are_predicted() -> None:
    task = make_task(with_teacher=True, masked_views=3)
    assert task.teacher is not None
    calls: list[int] = []
    plain = task.teacher.model.contextualise

    def counted(patches: dict[Modality, Tensor], *arguments: Any) -> dict[Modality, Tensor]:
        calls.append(len(patches["audio"]))
        return plain(patches, *arguments)

    task.teacher.model.contextualise = counted  # type: ignore[method-assign]
    task.loss(random_inputs(4), 0)
    assert calls == [4]


def test_the_term_of_several_views_is_the_mean_of_theirs() -> None:
    inputs = random_inputs(4)
    task = make_task(masked_views=2)
    views = task.views(inputs, task.plan)
    output = task.model(task.patches(inputs), views)
    target = task.targets(task.patches(inputs))["video"]
    each = []
    for view, predictions in zip(views["video"].predicted, output.predictions["video"], strict=True):
        error = (predictions - target).square().mean(-1)
        each.append((error * view.is_masked).sum() / view.is_masked.sum())
    torch.testing.assert_close(task.loss(inputs, 0).terms["video_reconstruction"], torch.stack(each).mean())
    assert not torch.isclose(each[0], each[1])


def test_all_tokens_can_count() -> None:
    inputs = random_inputs(4)
    task = make_task(reconstruction=Reconstruction(tokens="all"))
    patches = task.patches(inputs)
    predictions = task.model(patches, task.views(inputs, task.plan)).predictions["audio"][0]
    expected = (predictions - task.targets(patches)["audio"]).square().mean()
    torch.testing.assert_close(task.loss(inputs, 0).terms["audio_reconstruction"], expected)


def test_patches_are_told_apart_by_the_second_head() -> None:
    inputs = random_inputs(4)
    task = make_task(masked_views=2, discrimination=PatchDiscrimination(weight=0.5, softmax_over="predictions"))
    report, patches, views = task.loss(inputs, 0), task.patches(inputs), task.views(inputs, task.plan)
    found = task.model(patches, views).discriminations["video"]
    ids = torch.stack([view.masked_ids for view in views["video"].predicted])
    expected = patch_discrimination(found, task.targets(patches)["video"], ids, "predictions")
    torch.testing.assert_close(report.terms["video_discrimination"], expected.loss)
    assert report.weights["video_discrimination"] == 0.5
    assert report.scalars["video_discrimination_accuracy"] == expected.accuracy
    assert {name for name in report.terms if "discrimination" in name} == {
        "audio_discrimination",
        "video_discrimination",
    }
    task.model.eval()
    metrics = task.evaluate([inputs])
    first = patch_discrimination(found[:1], task.targets(patches)["video"], ids[:1], "predictions")
    assert metrics["video_discrimination"] == pytest.approx(first.loss.item(), rel=1e-5)
    assert metrics["video_discrimination_accuracy"] == pytest.approx(first.accuracy.item())


def test_agreement_with_the_teacher_is_logged() -> None:
    scalars = make_task(with_teacher=True).loss(random_inputs(4), 0).scalars
    assert -1 <= float(scalars["audio_agreement"]) <= 1
    assert "audio_agreement" not in make_task().loss(random_inputs(4), 0).scalars


def test_one_direction_of_the_contrast() -> None:
    both = make_task().loss(random_inputs(6), 0).terms["inter_contrast"]
    one = make_task(contrast=CONTRAST.model_copy(update={"directions": "audio_for_video"}))
    value = one.loss(random_inputs(6), 0).terms["inter_contrast"]
    task, inputs = make_task(), random_inputs(6)
    pooled = task.model(task.patches(inputs), task.views(inputs, task.plan)).pooled
    audio, video = (torch.nn.functional.normalize(pooled[m][0], dim=1) for m in ("audio", "video"))
    expected = torch.nn.functional.cross_entropy(video @ audio.T / 0.2, torch.arange(6))
    torch.testing.assert_close(value, expected)
    assert not torch.isclose(value, both)


def test_clips_with_gaps_take_part_in_the_terms_they_can() -> None:
    inputs = with_gaps(random_inputs(8))
    task = gap_task()
    report = task.loss(inputs, 0)
    complete = HAS_AUDIO & HAS_VIDEO
    plain = make_task()
    # Contrast: as if the incomplete clips were not there.
    expected = plain.loss(rows(inputs, complete), 0)
    torch.testing.assert_close(report.terms["inter_contrast"], expected.terms["inter_contrast"], rtol=1e-5, atol=1e-6)
    audio_only = plain.loss(rows(inputs, HAS_AUDIO), 0)
    name = "audio_intra_contrast"
    torch.testing.assert_close(report.terms[name], audio_only.terms[name], rtol=1e-5, atol=1e-6)
    # Reconstruction: each clip from what it has.
    views, patches = task.views(inputs, task.plan), task.patches(inputs)
    present: Presence = {"audio": HAS_AUDIO, "video": HAS_VIDEO}
    predictions = task.model(patches, views, present).predictions["audio"][0]
    error = (predictions - task.targets(patches)["audio"]).square().mean(-1)
    counted = views["audio"].predicted[0].is_masked & HAS_AUDIO[:, None]
    torch.testing.assert_close(report.terms["audio_reconstruction"], error[counted].mean())


def test_what_stands_in_for_an_absent_modality_changes_nothing() -> None:
    task = gap_task()
    first, second = with_gaps(random_inputs(8)), with_gaps(random_inputs(8))
    assert second.audio is not None
    second.audio[1] = 5.0
    before, after = loss_and_gradients(task, first), loss_and_gradients(gap_task(), second)
    for name, value in before[0].terms.items():
        torch.testing.assert_close(value, after[0].terms[name], rtol=1e-5, atol=1e-6)
    for name, gradient in before[1].items():
        torch.testing.assert_close(gradient, after[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_batch_without_any_sound_still_gives_every_parameter_a_gradient(with_teacher: bool) -> None:
    inputs = random_inputs(4)
    inputs.audio_present = torch.zeros(4, dtype=torch.bool)
    task = gap_task(with_teacher=with_teacher)
    report, gradients = loss_and_gradients(task, inputs)
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert set(gradients) == trained
    assert all(g.isfinite().all() for g in gradients.values())
    assert report.terms["inter_contrast"].item() == 0
    assert not any(gradients[name].any() for name in gradients if name.startswith("encoders.audio."))


def test_without_gaps_the_flags_change_nothing() -> None:
    inputs = random_inputs(6)
    plain, flagged = make_task().loss(inputs, 0), gap_task().loss(inputs, 0)
    for name, value in plain.terms.items():
        torch.testing.assert_close(value, flagged.terms[name], rtol=1e-5, atol=1e-6)


def test_dropped_modalities_are_drawn_from_the_clips_seeds() -> None:
    task = make_task(modality_dropout=0.5)
    inputs = random_inputs(64)
    present = task._present(inputs)
    assert present is not None
    audio, video = present["audio"], present["video"]
    assert audio is not None
    assert video is not None
    assert (audio | video).all()
    assert 0.3 < float((audio & video).float().mean()) < 0.7
    again = make_task(modality_dropout=0.5)._present(slice_inputs(inputs, 5, 9))
    assert again is not None
    assert torch.equal(again["audio"], audio[5:9])  # type: ignore[arg-type]
    assert make_task()._present(inputs) is None


def all_terms_task(with_teacher: bool) -> Pretraining:
    """With every term that there is beside, or instead of, a teacher's."""
    return gap_task(with_teacher=with_teacher, discrimination=None if with_teacher else DISCRIMINATION)


def gaps_on_one_rank_of_two(with_teacher: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
    task = all_terms_task(with_teacher)
    task.model = DistributedDataParallel(task.model.double())
    if task.teacher is not None:
        task.teacher.model.double()
    start = 4 * distributed.rank()
    inputs = with_gaps(slice_inputs(random_inputs(8), start, start + 4), start)
    report, gradients = loss_and_gradients(task, double(inputs))
    return {name: value.item() for name, value in report.terms.items()}, gradients


@pytest.mark.parametrize("with_teacher", [False, True])
def test_unequal_gaps_on_two_ranks_equal_one_rank_on_the_joined_batch(with_teacher: bool) -> None:
    task = all_terms_task(with_teacher)
    task.model.double()
    if task.teacher is not None:
        task.teacher.model.double()
    report, gradients = loss_and_gradients(task, double(with_gaps(random_inputs(8))))
    ranks = run_in_ranks(gaps_on_one_rank_of_two, with_teacher)
    for name, value in report.terms.items():
        assert sum(terms[name] for terms, _ in ranks) / 2 == pytest.approx(value.item(), rel=1e-12)
    for _, rank_gradients in ranks:
        for name, gradient in gradients.items():
            torch.testing.assert_close(rank_gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_evaluation_leaves_out_what_is_not_there() -> None:
    task = gap_task()
    task.model.eval()
    inputs = with_gaps(random_inputs(8))
    metrics = task.evaluate([inputs])
    assert metrics["gallery_size"] == 5
    complete = make_task()
    complete.model.eval()
    expected = complete.evaluate([rows(inputs, HAS_AUDIO & HAS_VIDEO)])
    for name, value in expected.items():
        if name.startswith(("audio_to_video", "video_to_audio")):
            assert metrics[name] == pytest.approx(value)


def test_one_network_can_memorise_sixteen_clips() -> None:
    """Every term near its least, and every clip found: what nothing but a sound pipeline from patches to ranks can do."""
    contrast = Contrast(inter_weight=1.0, intra_weight=0.1, inter_temperature=0.1, intra_temperature=0.1)
    torch.manual_seed(0)
    task = make_task(contrast=contrast)
    inputs = random_inputs(16)
    # Clips that can be guessed from a quarter of their patches: all patches of one are alike.
    assert inputs.audio is not None
    assert inputs.video is not None
    inputs = replace(inputs, audio=tiled(inputs.audio, (16, 16)), video=tiled(inputs.video, (2, 16, 16)))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=300)
    for step in range(300):
        inputs.seeds = torch.arange(16) + 100 * step
        report = task.loss(inputs, step)
        optimizer.zero_grad()
        report.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    terms = {name: value.item() for name, value in report.terms.items()}
    assert terms["audio_reconstruction"] < 0.1
    assert terms["video_reconstruction"] < 0.1
    assert terms["inter_contrast"] < 0.05
    task.model.eval()
    metrics = task.evaluate([inputs])
    assert metrics["audio_to_video/recall_at_1_percent"] == 100
    assert metrics["video_to_audio/recall_at_1_percent"] == 100


def tiled(values: Tensor, patch: tuple[int, ...]) -> Tensor:
    """The first patch of each clip, repeated over the whole input."""
    first = values[(slice(None), slice(None), *(slice(size) for size in patch))]
    return first.repeat(1, 1, *(whole // size for whole, size in zip(values.shape[2:], patch, strict=True)))


def test_representations_of_parts_with_gaps_make_the_contrast_of_the_whole() -> None:
    """What a step in several micro-steps rests on."""
    task = gap_task(contrast=CONTRAST.model_copy(update={"audio_mask_ratio": 0.5, "video_mask_ratio": 0.5}))
    whole = with_gaps(random_inputs(8))
    parts = [with_gaps(slice_inputs(random_inputs(8), start, start + 4), start) for start in (0, 4)]
    pieces = [task.representations(part, 0) for part in parts]
    joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    assert {"audio_present", "video_present"} < set(joined)
    expected = task.loss(whole, 0).terms
    for name, value in task.coupled_loss(joined).terms.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    own, representations = task.own_loss(parts[0], 0)
    assert set(own.terms) == {"audio_reconstruction", "video_reconstruction"}
    torch.testing.assert_close(representations["audio"], pieces[0]["audio"], rtol=1e-5, atol=1e-6)
