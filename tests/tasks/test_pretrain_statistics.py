"""What pre-training logs about targets and embeddings, without changing or delaying the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mavil import distributed
from mavil.config import Contrast
from mavil.engine.metrics.tracker import Averages
from mavil.evaluation.collapse import alignment, embedding_std, normalised, target_statistics, uniformity
from tests.support.ranks import run_in_ranks
from tests.support.recipes import random_inputs, slice_inputs
from tests.tasks.test_pretrain import make_task

TARGETS = {f"{m}_target_{what}" for m in ("audio", "video") for what in ("mean", "std")}
EMBEDDINGS = {f"{m}_embedding_{what}" for m in ("audio", "video") for what in ("std", "uniformity")}


def scalars_of(**options: Any) -> dict[str, Any]:
    return make_task(**options).loss(random_inputs(4), 0).scalars


def test_names() -> None:
    both = TARGETS | EMBEDDINGS | {"audio_video_alignment"}
    assert both <= scalars_of().keys()
    assert both <= scalars_of(contrast=Contrast(inter_weight=0.1, intra_weight=0)).keys()
    assert scalars_of(contrast=None).keys() == TARGETS
    alone = make_task().loss(random_inputs(1), 0).scalars
    assert alone.keys() >= TARGETS
    assert not (EMBEDDINGS | {"audio_video_alignment"}) & alone.keys()


def test_embeddings_are_those_that_the_contrast_compares() -> None:
    task, inputs = make_task(), random_inputs(4)
    output = task.model(task.patches(inputs), task.views(inputs, task.plan))
    audio, video = (normalised(output.pooled[m][0]) for m in ("audio", "video"))
    scalars = task.loss(inputs, 0).scalars
    torch.testing.assert_close(scalars["audio_embedding_std"], embedding_std(audio))
    torch.testing.assert_close(scalars["video_embedding_uniformity"], uniformity(video))
    torch.testing.assert_close(scalars["audio_video_alignment"], alignment(audio, video))


@pytest.mark.parametrize("with_teacher", [False, True])
def test_targets_are_those_that_predictions_are_compared_with(with_teacher: bool) -> None:
    task, inputs = make_task(with_teacher), random_inputs(4)
    scalars = task.loss(inputs, 0).scalars
    for modality, targets in task.targets(task.patches(inputs)).items():
        mean, deviation = target_statistics(targets)
        torch.testing.assert_close(scalars[f"{modality}_target_mean"], mean)
        torch.testing.assert_close(scalars[f"{modality}_target_std"], deviation)
        assert deviation > 0.1


def test_a_collapsed_encoder_shows() -> None:
    task = make_task()
    for name, parameter in task.model.named_parameters():
        if name.startswith("encoders.audio.norm"):
            # The same point for every clip.
            parameter.data.fill_(1.0 if name.endswith("bias") else 0.0)
    scalars = task.loss(random_inputs(4), 0).scalars
    assert abs(float(scalars["audio_embedding_std"])) < 1e-3
    assert abs(float(scalars["audio_embedding_uniformity"])) < 1e-3
    assert float(scalars["video_embedding_std"]) > 0.1


def test_with_gaps_the_clips_that_have_a_modality_spread() -> None:
    task, has_audio = make_task(has_gaps=True), torch.tensor([True, True, False, True])
    inputs = replace(random_inputs(4), audio_present=has_audio, video_present=torch.ones(4, dtype=torch.bool))
    present = {"audio": has_audio, "video": inputs.video_present}
    output = task.model(task.patches(inputs), task.views(inputs, task.plan), present)
    audio, video = (normalised(output.pooled[m][0]) for m in ("audio", "video"))
    scalars = task.loss(inputs, 0).scalars
    assert scalars.keys() & (EMBEDDINGS | {"audio_video_alignment"}) == {"audio_embedding_std", "video_embedding_std"}
    torch.testing.assert_close(scalars["audio_embedding_std"], embedding_std(audio[has_audio]))
    torch.testing.assert_close(scalars["video_embedding_std"], embedding_std(video))


class Reads(TorchDispatchMode):
    """Notes every number that is read from a tensor, and every result whose size depends on its content."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function).split(".")[1] in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_loss_and_its_averages_read_nothing_from_the_device(with_teacher: bool) -> None:
    task, inputs, averages = make_task(with_teacher), random_inputs(4), Averages()
    with Reads() as reads:
        float(torch.ones(()))
    assert reads.found == ["aten._local_scalar_dense.default"]
    with Reads() as reads:
        report = task.loss(inputs, 0)
        averages.add(report.terms | report.scalars)
        averages.add(report.terms | report.scalars)
    assert reads.found == []
    tensors = [value for value in report.scalars.values() if isinstance(value, Tensor)]
    assert len(tensors) >= 10
    assert not any(value.requires_grad or value.ndim for value in tensors)


def means_of_own_rows() -> dict[str, float]:
    averages, start = Averages(), 4 * distributed.rank()
    averages.add(make_task().loss(slice_inputs(random_inputs(8), start, start + 4), 0).scalars)
    return averages.read(torch.device("cpu"))


def test_logged_values_are_means_over_ranks_of_their_own_rows() -> None:
    one, other = run_in_ranks(means_of_own_rows)
    assert one == other
    task = make_task()
    for name in sorted(TARGETS | EMBEDDINGS | {"audio_video_alignment"}):
        parts = [float(task.loss(slice_inputs(random_inputs(8), s, s + 4), 0).scalars[name]) for s in (0, 4)]
        assert one[name] == pytest.approx(sum(parts) / 2, rel=1e-4, abs=1e-6), name
