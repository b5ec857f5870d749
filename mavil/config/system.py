"""One system, completely described: all groups together, and which of their values exclude each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mavil.config.base import Settings
from mavil.config.data import Data
from mavil.config.model import AudioBranch, BottleneckFusion, JointFusion, VideoBranch
from mavil.config.task import ClassifyTask, PretrainTask
from mavil.config.training import Optimizer, Schedule, Trainer
from mavil.structs import MODALITIES, Modality


class Recipe(Settings):
    """One system, completely described."""

    name: str = Field(description="also the default run folder, runs/<name>")
    seed: int = Field(0, ge=0, description="of weights, order, masks and crops")
    audio: AudioBranch | None = AudioBranch()
    video: VideoBranch | None = VideoBranch()
    fusion: Annotated[JointFusion | BottleneckFusion, Field(discriminator="kind")] | None = JointFusion()
    task: Annotated[PretrainTask | ClassifyTask, Field(discriminator="kind")] = PretrainTask()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    trainer: Trainer = Trainer()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What a batch of this recipe must hold."""
        if isinstance(self.task, ClassifyTask):
            return self.task.modalities
        return tuple(m for m in MODALITIES if self.branch(m) is not None)

    def branch(self, modality: Modality) -> AudioBranch | VideoBranch | None:
        """The settings of one modality."""
        return self.audio if modality == "audio" else self.video

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        present = [m for m in MODALITIES if self.branch(m) is not None]
        for modality in present:
            branch = self.branch(modality)
            assert branch is not None
            branch.grid()
        if not present:
            raise ValueError("audio and video are both null: a recipe needs at least one")
        missing = [m for m in self.modalities if m not in present]
        if missing:
            raise ValueError(f"task.modalities asks for {missing[0]}, but {missing[0]} is null")
        if self.fusion is not None and len(present) < 2:
            raise ValueError(f"fusion needs both modalities, but only {present[0]} is set: write 'fusion: null'")
        if (
            self.fusion is not None
            and self.audio
            and self.video
            and self.audio.encoder.width != self.video.encoder.width
        ):
            raise ValueError(
                f"fusion needs encoders of one width, but audio has {self.audio.encoder.width} "
                f"and video {self.video.encoder.width}"
            )
        if isinstance(self.task, PretrainTask):
            self._check_pretraining(self.task, len(present))
        return self

    def _check_pretraining(self, task: PretrainTask, num_modalities: int) -> None:
        contrast = task.contrast
        if contrast and contrast.inter_weight > 0 and num_modalities < 2:
            raise ValueError("task.contrast.inter_weight compares audio with video: set it to 0 or set both modalities")
        if contrast and self.trainer.accumulation > 1 and self.trainer.accumulation_negatives == "refuse":
            raise ValueError(
                f"trainer.accumulation {self.trainer.accumulation} would give each contrastive loss only the candidates of one "
                "micro-step: set trainer.accumulation_negatives=cached to have those of the whole step, for a second forward "
                "pass, or =fewer if that is meant"
            )
        if task.teacher and self.fusion is None and num_modalities == 2:
            raise ValueError("task.teacher needs a fusion when both modalities are set: its targets are fused tokens")
