"""Every setting there is: typed, frozen, each with its unit, its default and where the default comes from.

:mod:`mavil.recipe` reads them from YAML files and the command line.
"""

from mavil.config.audio import AudioAugment, AudioBranch
from mavil.config.base import Duration, Length, Settings
from mavil.config.data import Data, Remote, Sampling
from mavil.config.masking import ChunkMasking, RandomMasking, SpanMasking, StructuredMasking
from mavil.config.model import BottleneckFusion, Branch, DecoderTower, JointFusion, Tower
from mavil.config.system import Recipe
from mavil.config.task import (
    ClassifyTask,
    Contrast,
    CutMix,
    Mixup,
    PatchDiscrimination,
    PretrainTask,
    Projection,
    Reconstruction,
    Start,
    Teacher,
    TokenMasking,
)
from mavil.config.training import LearningRateFactors, Optimizer, Schedule, Trainer
from mavil.config.video import VideoAugment, VideoBranch

__all__ = [
    "AudioAugment",
    "AudioBranch",
    "BottleneckFusion",
    "Branch",
    "ChunkMasking",
    "ClassifyTask",
    "Contrast",
    "CutMix",
    "Data",
    "DecoderTower",
    "Duration",
    "JointFusion",
    "LearningRateFactors",
    "Length",
    "Mixup",
    "Optimizer",
    "PatchDiscrimination",
    "PretrainTask",
    "Projection",
    "RandomMasking",
    "Recipe",
    "Reconstruction",
    "Remote",
    "Sampling",
    "Schedule",
    "Settings",
    "SpanMasking",
    "Start",
    "StructuredMasking",
    "Teacher",
    "TokenMasking",
    "Tower",
    "Trainer",
    "VideoAugment",
    "VideoBranch",
]
