"""Spectrograms and frames as PNG bytes."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

_GREY = 118
"""Level of what the model did not see: far from both ends of the colour map and from typical pictures."""
_GAP = 3
"""Transparent pixels between the frames of a sheet."""


def colour_range(log_mel: Tensor) -> tuple[float, float]:
    """Lowest and highest value to colour, from the 2nd and 99.8th percentile of a spectrogram ``[S, M]``.

    Take it from the original and use it for the reconstruction too, so that equal colours mean equal levels.
    """
    low, high = np.percentile(log_mel.float().cpu().numpy(), [2, 99.8])
    return float(low), float(max(high, low + 1e-3))


def spectrogram_png(log_mel: Tensor, value_range: tuple[float, float], is_masked: Tensor | None = None) -> bytes:
    """A spectrogram ``[S, M]`` as a picture of S x M pixels: time to the right, low frequencies at the bottom.

    ``value_range`` is mapped to black through red to pale yellow; where ``is_masked`` ``[S, M]`` is True the picture is grey.
    """
    low, high = value_range
    level = ((log_mel.float().cpu() - low) / (high - low)).clamp(0, 1)
    colours = matplotlib.colormaps["magma"](level.numpy(), bytes=True)[..., :3]
    if is_masked is not None:
        colours[is_masked.cpu().numpy()] = _GREY
    return _png(np.ascontiguousarray(colours.swapaxes(0, 1)[::-1]))


def frames_png(frames: Tensor, columns: int, is_masked: Tensor | None = None) -> bytes:
    """Frames ``[T, 3, H, Wd]`` uint8 as one sheet, left to right and top to bottom, ``columns`` in a row.

    Where ``is_masked`` ``[T, H, Wd]`` is True the picture is grey; between the frames it is transparent.
    """
    pixels = frames.cpu().permute(0, 2, 3, 1).clone()
    if is_masked is not None:
        pixels[is_masked.cpu()] = _GREY
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    sheet = torch.zeros(rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4, dtype=torch.uint8)
    for i in range(count):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        sheet[top : top + height, left : left + width, :3] = pixels[i]
        sheet[top : top + height, left : left + width, 3] = 255
    return _png(sheet.numpy())


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return stream.getvalue()
