"""Every setting there is: typed, frozen, each with its unit, its default and where the default comes from.

:mod:`mavil.recipe` reads them from YAML files and the command line.
"""

from mavil.config.base import Duration, Length, Settings
from mavil.config.data import Data, Remote, Sampling
from mavil.config.model import (
    AudioAugment,
    AudioBranch,
    BottleneckFusion,
    Branch,
    DecoderTower,
    JointFusion,
    Tower,
    VideoAugment,
    VideoBranch,
)
from mavil.config.system import Recipe
from mavil.config.task import ClassifyTask, Contrast, PretrainTask, Projection, Reconstruction, Start, Teacher
from mavil.config.training import Optimizer, Schedule, Trainer

__all__ = [
    "AudioAugment",
    "AudioBranch",
    "BottleneckFusion",
    "Branch",
    "ClassifyTask",
    "Contrast",
    "Data",
    "DecoderTower",
    "Duration",
    "JointFusion",
    "Length",
    "Optimizer",
    "PretrainTask",
    "Projection",
    "Recipe",
    "Reconstruction",
    "Remote",
    "Sampling",
    "Schedule",
    "Settings",
    "Start",
    "Teacher",
    "Tower",
    "Trainer",
    "VideoAugment",
    "VideoBranch",
]
