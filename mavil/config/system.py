"""One system, completely described: all groups together, and which of their values exclude each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mavil.config.audio import AudioBranch
from mavil.config.base import Settings
from mavil.config.data import Data
from mavil.config.exclusions import check_classification, check_optimizer, check_pretraining
from mavil.config.model import BottleneckFusion, JointFusion
from mavil.config.task import ClassifyTask, PretrainTask
from mavil.config.training import Optimizer, Schedule, Trainer
from mavil.config.training_exclusions import check_training
from mavil.config.video import VideoBranch
from mavil.structs import MODALITIES, Modality


class Recipe(Settings):
    """One system, completely described."""

    name: str = Field(description="also the default run folder, runs/<name>")
    seed: int = Field(0, ge=0, description="of weights, order, masks and crops")
    audio: AudioBranch | None = AudioBranch()
    video: VideoBranch | None = VideoBranch()
    fusion: Annotated[JointFusion | BottleneckFusion, Field(discriminator="kind")] | None = JointFusion()
    joint_decoder: bool = Field(
        False, description="one decoder over the tokens of both modalities, as large as audio.decoder [source CAV-MAE]"
    )
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
        check_training(self.trainer, self.task)
        check_optimizer(self.optimizer, self.task, self.fusion)
        if isinstance(self.task, PretrainTask):
            branches = {m: branch for m in MODALITIES if (branch := self.branch(m)) is not None}
            check_pretraining(self.task, branches, self.fusion, self.joint_decoder)
        else:
            seen = {m: branch for m in self.modalities if (branch := self.branch(m)) is not None}
            check_classification(self.task, seen, self.fusion)
        return self
