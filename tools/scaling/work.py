"""What one clip and one step of a recipe cost, counted from the recipe itself."""

from __future__ import annotations

from dataclasses import dataclass

from mavil.commands.inspect import inspect_recipe
from mavil.config import PretrainTask, Recipe
from mavil.structs import UserError

FLOAT32 = 4
ADAM_MOMENTS = 2
GIB = 2**30
TENSORS_PER_BLOCK = 12
"""Weight and bias of two norms, QKV, projection and two layers of the MLP."""


@dataclass(frozen=True)
class Work:
    """A pre-training recipe in numbers.

    Attributes:
        forward, teacher: multiply-adds per clip, of the trained model and of the frozen teacher (0 without).
        trained: parameters that get a gradient.
        fixed_gib, clip_gib: estimated memory of a rank: weights, gradients and moments; activations per clip, GiB.
        gathered: tensors ``[B, width]`` float32 per step that every rank sends to all others for the contrastive terms.
        blocks, teacher_blocks: transformer blocks called once per step with, and without, a backward pass.
        epochs: of the recipe's schedule, by ``clips_per_epoch`` clips where it counts steps.
    """

    name: str
    forward: int
    teacher: int
    trained: int
    fixed_gib: float
    clip_gib: float
    gathered: int
    width: int
    blocks: int
    teacher_blocks: int
    base_lr: float
    recipe: Recipe

    @property
    def flops_per_clip(self) -> float:
        """Floating-point operations: the backward pass is twice the forward, a multiply-add is two, a teacher only forward."""
        return 2.0 * (3 * self.forward + self.teacher)

    @property
    def backward_share(self) -> float:
        """Of the work, what is backward pass: there gradients are averaged meanwhile."""
        return 2 * self.forward / (3 * self.forward + self.teacher)

    @property
    def tensors(self) -> int:
        """Parameters as tensors, about: what is outside of blocks is left out."""
        return TENSORS_PER_BLOCK * self.blocks

    @property
    def gradient_bytes(self) -> int:
        """Float32, as the weights are."""
        return FLOAT32 * self.trained

    def checkpoint_bytes(self, has_average: bool = False) -> int:
        """Weights, two Adam moments and, where the recipe has one, the average of the weights."""
        return FLOAT32 * self.trained * (1 + ADAM_MOMENTS + has_average)

    def gathered_bytes(self, global_batch: int) -> int:
        """What the gathers of one step bring together on each rank: ``gathered`` tensors ``[R * B, width]`` float32."""
        return self.gathered * global_batch * self.width * FLOAT32

    def samples(self, clips_per_epoch: int, global_batch: int) -> int:
        """Clips that the whole schedule passes through."""
        return self.recipe.schedule.length.steps(clips_per_epoch, global_batch) * global_batch


def work_of(recipe: Recipe) -> Work:
    """Count a recipe's work on the meta device; nothing is allocated.

    Raises:
        UserError: the recipe does not pre-train.
    """
    task = recipe.task
    if not isinstance(task, PretrainTask):
        raise UserError(f"{recipe.name}: a recipe of task {task.kind}; the estimate is for pre-training recipes")
    found = inspect_recipe(recipe)
    branches = [branch for m in recipe.modalities if (branch := recipe.branch(m)) is not None]
    decoder_depths = [branch.decoder.depth for branch in branches] if task.reconstruction is not None else []
    projection = task.contrast.projection if task.contrast else None
    encoder_blocks = sum(branch.encoder.depth for branch in branches)
    fusion_blocks = recipe.fusion.depth if recipe.fusion is not None else 0
    has_teacher = task.teacher is not None
    memory = found.memory_gib
    return Work(
        name=recipe.name,
        forward=found.multiply_adds["forward"],
        teacher=found.multiply_adds.get("teacher", 0),
        trained=found.parameters["trained"],
        fixed_gib=memory["weights"] + memory["gradients_and_adam"],
        clip_gib=memory["activations"] / recipe.trainer.device_batch,
        gathered=count_gathered(task, len(branches)),
        width=projection.width if projection else branches[0].encoder.width,
        blocks=encoder_blocks + fusion_blocks + sum(decoder_depths[:1] if recipe.joint_decoder else decoder_depths),
        teacher_blocks=encoder_blocks + fusion_blocks if has_teacher else 0,
        base_lr=recipe.optimizer.base_lr,
        recipe=recipe,
    )


def count_gathered(task: PretrainTask, num_modalities: int) -> int:
    """Tensors a step gathers: one per direction of a contrastive pair (:func:`mavil.losses.contrastive.symmetric_info_nce`)."""
    contrast = task.contrast
    if contrast is None or contrast.negatives != "global":
        return 0
    inter = 0 if contrast.inter_weight == 0 else 2 if contrast.directions == "both" else 1
    return inter + (2 * num_modalities if contrast.intra_weight > 0 else 0)
