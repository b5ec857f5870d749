"""Weights from elsewhere: of an earlier run, and of other projects' checkpoints in their own names."""

from __future__ import annotations

from mavil.models.weights.audiovisual import to_cav_mae_names, to_mavil_names
from mavil.models.weights.converted import Converted
from mavil.models.weights.geometry import PartGeometry, geometry_of
from mavil.models.weights.layouts import convert
from mavil.models.weights.offers import Target
from mavil.models.weights.parts import load_parts
from mavil.models.weights.positions import resize_positions
from mavil.models.weights.reading import read_checkpoint
from mavil.models.weights.report import StartReport
from mavil.models.weights.starts import load_start, start_parts

__all__ = [
    "Converted",
    "PartGeometry",
    "StartReport",
    "Target",
    "convert",
    "geometry_of",
    "load_parts",
    "load_start",
    "read_checkpoint",
    "resize_positions",
    "start_parts",
    "to_cav_mae_names",
    "to_mavil_names",
]
