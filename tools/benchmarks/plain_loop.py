"""The floor of training: the straightest loop a fair person would write around a model on inputs that are already there.

Forward, backward, fused AdamW, gradients away; no finite check, no clipping, no norm, no schedule, no log, no other rank.
"""

from __future__ import annotations

from time import perf_counter

import torch

from mavil import distributed
from mavil.commands.assemble import task_for
from mavil.commands.inspect import ASSUMED_CLASSES
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.engine.precision import autocast, choose_precision
from mavil.structs import Inputs
from mavil.tasks.base import Task
from mavil.tasks.pretrain import Pretraining


class PlainLoop:
    """Trains a recipe's model on one random batch of ``num_clips``, in this process alone and on all of its cores."""

    def __init__(self, recipe: Recipe, num_clips: int, device: torch.device, num_threads: int) -> None:
        self._task = build_task(recipe, device)
        if isinstance(self._task, Pretraining) and self._task.contrast is not None:
            # All clips are here; the other ranks, where there are any, are waiting.
            self._task.contrast = self._task.contrast.model_copy(update={"negatives": "local"})
        self._device, self._precision = device, choose_precision(recipe.trainer.precision, device)
        self._num_threads = num_threads
        self._inputs = random_inputs(recipe, num_clips, device)
        trained = [p for p in self._task.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=1e-6, betas=recipe.optimizer.betas, weight_decay=recipe.optimizer.weight_decay, fused=True
        )

    def step(self) -> float:
        """One step; how long it took, s."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._num_threads)
        began = self._now()
        with autocast(self._device, self._precision):
            total = self._task.loss(self._inputs, 0).total
        total.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        seconds = self._now() - began
        torch.set_num_threads(before)
        self._inputs.seeds += len(self._inputs)  # other masks
        return seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()


def vocabulary_of(recipe: Recipe) -> Vocabulary | None:
    """As many made-up classes as AudioSet has, for a classifier."""
    if not isinstance(recipe.task, ClassifyTask):
        return None
    return Vocabulary(tuple(f"class{i}" for i in range(ASSUMED_CLASSES)))


def build_task(recipe: Recipe, device: torch.device) -> Task:
    """The task of a recipe, in training mode, on ``device``."""
    task = task_for(recipe, vocabulary_of(recipe), device)
    task.model.train()
    return task


def random_inputs(recipe: Recipe, num_clips: int, device: torch.device) -> Inputs:
    """Noise in the shapes of a recipe's inputs; clips of different ranks differ."""
    generator = torch.Generator().manual_seed(distributed.rank())
    audio, video = recipe.audio, recipe.video

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(num_clips, *shape, generator=generator).to(device)

    targets = None
    if isinstance(recipe.task, ClassifyTask):
        targets = torch.eye(ASSUMED_CLASSES)[torch.arange(num_clips) % ASSUMED_CLASSES].to(device)
    return Inputs(
        keys=[f"clip{i}" for i in range(num_clips)],
        seeds=torch.arange(num_clips),
        audio=noise(1, audio.num_steps, audio.num_mel_bins) if audio and "audio" in recipe.modalities else None,
        video=noise(3, video.num_frames, video.size, video.size) if video and "video" in recipe.modalities else None,
        targets=targets,
    )
