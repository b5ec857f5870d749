"""Which settings of the training loop exclude each other; each mistake is one line with both values."""

from __future__ import annotations

from mavil.config.task import ClassifyTask, PretrainTask
from mavil.config.training import Trainer


def check_training(settings: Trainer, task: PretrainTask | ClassifyTask) -> None:
    """What the loop cannot do together.

    Raises:
        ValueError: two settings do not go together.
    """
    contrast = task.contrast if isinstance(task, PretrainTask) else None
    has_contrast = contrast is not None and contrast.inter_weight + contrast.intra_weight > 0
    if contrast is not None and settings.accumulation > 1 and settings.accumulation_negatives == "refuse":
        raise ValueError(
            f"trainer.accumulation {settings.accumulation} would give each contrastive loss only the candidates of one "
            "micro-step: set trainer.accumulation_negatives=cached to have those of the whole step, for a second forward "
            "pass, or =fewer if that is meant"
        )
    if isinstance(task, ClassifyTask) and _holds_one_clip(settings):
        for name, probability in (("mixup", task.mixup.probability), ("cutmix", task.cutmix.probability)):
            if probability > 0:
                raise ValueError(
                    f"task.{name}.probability={probability} mixes clips of a batch, but trainer.device_batch is 1: make it 2 or "
                    f"more, or set task.{name}.probability=0"
                )
    _check_averages(settings)
    if settings.term_gradients_every is None:
        return
    is_cached = settings.accumulation > 1 and settings.accumulation_negatives == "cached" and has_contrast
    for is_wrong, setting, why in (
        (is_cached, "trainer.accumulation_negatives=cached", "a contrastive term has no gradient in a micro-step"),
        (settings.compile, "trainer.compile=true", "a compiled block can be differentiated only once"),
        (
            settings.activation_checkpointing == "fairscale",
            "trainer.activation_checkpointing=fairscale",
            "its blocks can be differentiated only once (=torch works)",
        ),
    ):
        if is_wrong:
            raise ValueError(
                f"trainer.term_gradients_every={settings.term_gradients_every} does not work with {setting}: {why}; leave one out"
            )


def _holds_one_clip(settings: Trainer) -> bool:
    """With ``global_batch`` the number of ranks decides."""
    return settings.device_batch == 1 and settings.global_batch is None


def _check_averages(settings: Trainer) -> None:
    """One average of the weights at most, and a mean of at least two."""
    last, every = settings.mean_of_last, settings.mean_every
    if last is None:
        return
    if settings.ema_decay is not None:
        raise ValueError(
            f"trainer.mean_of_last={last} and trainer.ema_decay={settings.ema_decay} both say which weights are evaluated and "
            "exported: leave one out"
        )
    if every.count == 0:
        raise ValueError(
            "trainer.mean_every is 0: it is the distance between the weights that are averaged, e.g. '1 epoch'"
        )
    if last.unit == every.unit and last.count <= every.count:
        raise ValueError(
            f"trainer.mean_of_last={last} with trainer.mean_every={every} is the mean of one set of weights, the last: make "
            "mean_of_last longer or mean_every shorter"
        )
