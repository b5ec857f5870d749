"""Weights from elsewhere: of an earlier run, and of other projects' checkpoints in their own names."""

from __future__ import annotations

from mavil.models.weights.audiovisual import to_cav_mae_names, to_mavil_names
from mavil.models.weights.converted import Converted
from mavil.models.weights.geometry import PartGeometry, geometry_of, spectrogram_size, table_kind
from mavil.models.weights.layouts import LAYOUTS, convert
from mavil.models.weights.mae_ast import to_mae_ast_names
from mavil.models.weights.offers import Target
from mavil.models.weights.parts import load_parts
from mavil.models.weights.positions import resize_positions
from mavil.models.weights.reading import CheckpointFile, read_checkpoint, read_file
from mavil.models.weights.report import StartReport
from mavil.models.weights.sound_names import to_audio_mae_names, to_m2d_names, to_msm_mae_names, to_timm_names
from mavil.models.weights.starts import load_start, start_parts
from mavil.models.weights.told import Told, told_by

__all__ = [
    "LAYOUTS",
    "CheckpointFile",
    "Converted",
    "PartGeometry",
    "StartReport",
    "Target",
    "Told",
    "convert",
    "geometry_of",
    "load_parts",
    "load_start",
    "read_checkpoint",
    "read_file",
    "resize_positions",
    "spectrogram_size",
    "start_parts",
    "table_kind",
    "to_audio_mae_names",
    "to_cav_mae_names",
    "to_m2d_names",
    "to_mae_ast_names",
    "to_mavil_names",
    "to_msm_mae_names",
    "to_timm_names",
    "told_by",
]
