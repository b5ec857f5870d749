"""A small convolutional network on log-mel, trained with a recipe's own clips, augmentation, batch, steps and schedule."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil.commands.inputs import evaluation_inputs, loader_for, prepare_for, vocabulary_for
from mavil.commands.schedule import learning_rate, step_counts
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.prepare import prepared
from mavil.engine.process.runtime import seed_everything, settle
from mavil.evaluation.predict import collect
from mavil.structs import Inputs, UserError

CHANNELS = (16, 32, 64, 128)
"""Of the blocks; the multiply-adds per clip are then about those of the ViT of configs/real_clips [our choice]."""
CPU = torch.device("cpu")


class SmallCNN(nn.Module):
    """Blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 max pooling; mean and maximum over what is left; linear.

    The usual small network for spectrograms, with the joint pooling of PANNs [source Kong et al. 2020].
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after in zip((1, *CHANNELS), CHANNELS, strict=False):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(2 * CHANNELS[-1], num_classes)

    def forward(self, spectrograms: Tensor) -> Tensor:
        """``[B, 1, S, M]`` -> logits ``[B, classes]``."""
        features = self.blocks(spectrograms).flatten(2)  # [B, C, cells]
        return self.head(torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1))


@dataclass(frozen=True)
class Scored:
    """What a baseline made of the test clips: ``scores`` and ``targets`` ``[n, classes]``, rows sorted by key."""

    keys: list[str]
    scores: Tensor
    targets: Tensor
    seconds: float
    facts: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Share of clips whose best score is that of their class, in [0, 1]; the first of equal scores counts."""
        return (self.scores.argmax(dim=1) == self.targets.argmax(dim=1)).double().mean().item()


def train_cnn(recipe: Recipe) -> Scored:
    """Train on ``data.train`` as the recipe says, score ``data.evaluation``. ``optimizer.layer_decay`` means nothing here.

    The same clips in the same order and with the same augmentation as ``mavil train`` takes for this recipe and seed, the same
    number of steps, batch and shape of the schedule; ``seconds`` are those of training.

    Raises:
        UserError: the recipe is not a classification of sound, or its shards are not there.
    """
    vocabulary = classes_of(recipe)
    assert isinstance(recipe.task, ClassifyTask)  # or it would have been refused
    settle(CPU, recipe.trainer.num_threads)
    seed_everything(recipe.seed)
    model = SmallCNN(len(vocabulary))
    optimizer = _optimizer(model, recipe)
    loader = loader_for(recipe, "train", vocabulary, training=True)
    prepare = prepare_for(recipe, CPU, training=True)
    total, warmup = step_counts(recipe, loader.samples_per_epoch)
    began = time.perf_counter()
    for step, inputs in zip(range(total), prepared(loader, prepare, CPU), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, total, warmup)
        optimizer.zero_grad()
        logits = model(inputs.audio)
        F.cross_entropy(logits, _targets(inputs), label_smoothing=recipe.task.label_smoothing).backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    facts = {"steps": float(total), "parameters": float(sum(p.numel() for p in model.parameters()))}
    model.eval()
    with torch.inference_mode():
        found = collect(
            evaluation_inputs(recipe, "evaluation", vocabulary, CPU),
            lambda inputs: {"scores": model(inputs.audio), "targets": _targets(inputs)},
        )
    return Scored(found.keys, found.values["scores"], found.values["targets"], seconds, facts)


def classes_of(recipe: Recipe) -> Vocabulary:
    """The classes of a recipe that a baseline can stand beside: one label per clip, from sound alone.

    Raises:
        UserError: it is another kind of recipe.
    """
    task = recipe.task
    if not isinstance(task, ClassifyTask) or recipe.modalities != ("audio",) or task.loss != "cross_entropy":
        raise UserError(
            f"{recipe.name}: the baselines take recipes with task.kind=classify, task.modalities=[audio] and "
            "task.loss=cross_entropy"
        )
    vocabulary = vocabulary_for(recipe)
    assert vocabulary is not None  # a classifier always has one
    return vocabulary


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with the recipe's decay, which biases and norms are spared as everywhere in the project [source MAE]."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim <= 1]
    settings = recipe.optimizer
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.base_lr, betas=settings.betas, eps=settings.eps)


def _targets(inputs: Inputs) -> Tensor:
    assert inputs.targets is not None  # the loader has a vocabulary
    return inputs.targets
