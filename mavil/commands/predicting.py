"""What a pre-trained model fills in for some clips, in units that people can look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mavil.commands.assemble import view_plan
from mavil.commands.normalisation import audio_statistics
from mavil.config import PretrainTask, Recipe
from mavil.models.masked import MaskedLearner
from mavil.report.reconstruct import Reconstruction, reconstruct_audio, reconstruct_video
from mavil.structs import Inputs, MaskedView, MaskedViews, Modality
from mavil.tasks.pretrain import Pretraining

ViewOf = Callable[[int], MaskedView]
"""From a number of clips to the view that each of them gets."""


@dataclass(frozen=True)
class Predicted:
    """Of one batch, by modality: ``predictions`` ``[B, N, P]`` of one view, and which tokens it hid, ``[B, N]`` bool."""

    predictions: dict[Modality, Tensor]
    is_masked: dict[Modality, Tensor]


@torch.inference_mode()
def predict(model: MaskedLearner, recipe: Recipe, inputs: Inputs, audio_view: ViewOf | None = None) -> Predicted:
    """Predict one view of every clip, drawn as the recipe says from the clips' seeds.

    ``audio_view`` hides other tokens of the sound. The recipe's task must predict something.
    """
    settings, plan = recipe.task, view_plan(recipe)
    assert isinstance(settings, PretrainTask)
    assert plan is not None
    assert settings.reconstruction is not None
    task = Pretraining(model, plan, settings.reconstruction, settings.contrast)
    views = task.views(inputs, task.plan.predicting_only())
    if audio_view is not None:
        views["audio"] = MaskedViews([audio_view(len(inputs))])
    output = model(task.patches(inputs), views)
    return Predicted(
        {m: values[0] for m, values in output.predictions.items()},
        {m: own.predicted[0].is_masked for m, own in views.items()},
    )


def audio_filled(
    model: MaskedLearner, recipe: Recipe, inputs: Inputs, predicted: Predicted, row: int
) -> Reconstruction | None:
    """The log-mel spectrogram of one clip with what the model made of it; ``None`` without sound."""
    if inputs.audio is None or recipe.audio is None:
        return None
    return reconstruct_audio(
        inputs.audio[row],
        predicted.predictions["audio"][row],
        predicted.is_masked["audio"][row],
        model.grid("audio"),
        _is_normalised(recipe),
        *audio_statistics(recipe),
        recipe.audio.std_factor,
    )


def video_filled(
    model: MaskedLearner, recipe: Recipe, inputs: Inputs, predicted: Predicted, row: int
) -> Reconstruction | None:
    """The frames of one clip with what the model made of them; ``None`` without a picture."""
    if inputs.video is None or recipe.video is None:
        return None
    return reconstruct_video(
        inputs.video[row],
        predicted.predictions["video"][row],
        predicted.is_masked["video"][row],
        model.grid("video"),
        _is_normalised(recipe),
        recipe.video.mean,
        recipe.video.std,
    )


def _is_normalised(recipe: Recipe) -> bool:
    assert isinstance(recipe.task, PretrainTask)
    return recipe.task.reconstruction is not None and recipe.task.reconstruction.normalise_patches
