"""uint8 frames of any size -> normalised square frames, batched on the device: crop, resize, flip in one resampling.

Cropping, resizing and mirroring are one linear map per axis, so each clip gets two small matrices (rows, columns) and the
whole ragged batch is resampled by two batched matrix products. The weights are the triangle filter of Pillow and
torchvision with ``antialias=True``: exact for enlarging and for shrinking by any factor, where a sampled grid would alias.
Weights outside a clip's box are zero, so neither padding nor a neighbouring clip can leak in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mavil.data.cutmix import Cuts, paste_boxes
from mavil.data.mixup import Mixing, mix_rows
from mavil.seeds import uniform_draws

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Width over height of random crops, log-uniform between the two [torchvision's RandomResizedCrop]."""
ATTEMPTS = 10
"""Drawn boxes that do not fit into the frame are drawn again this often; then the whole frame's middle is taken."""


def random_boxes(sizes: Tensor, draws: Tensor, crop_scale: tuple[float, float]) -> Tensor:
    """One box per clip, drawn as torchvision's RandomResizedCrop does.

    Args:
        sizes: ``[B, 2]`` true (H, Wd) of each clip, on the CPU.
        draws: ``[B, 2 * ATTEMPTS + 2]`` uniform numbers in [0, 1), on the CPU.
        crop_scale: smallest and largest area of the box as a share of the frame.

    Returns:
        ``[B, 4]`` int64 (top, left, height, width) in pixels.
    """
    height, width = sizes.double().unsqueeze(2).unbind(1)  # [B, 1] each
    trials = draws[:, : 2 * ATTEMPTS].double().view(-1, ATTEMPTS, 2)
    area = height * width * (crop_scale[0] + (crop_scale[1] - crop_scale[0]) * trials[..., 0])  # [B, ATTEMPTS]
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    aspect = torch.exp(low + (high - low) * trials[..., 1])
    box_width, box_height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_width >= 1) & (box_width <= width) & (box_height >= 1) & (box_height <= height)
    # As a last trial, which always fits: the largest box in the middle whose aspect ratio is allowed.
    widest = torch.minimum(width, (height * ASPECT_RATIOS[1]).round())
    tallest = torch.minimum(height, (width / ASPECT_RATIOS[0]).round())
    box_width, box_height = torch.cat([box_width, widest], 1), torch.cat([box_height, tallest], 1)
    chosen = torch.cat([fits, torch.ones_like(fits[:, :1])], 1).int().argmax(1, keepdim=True)  # the first that fits
    box_height, box_width = box_height.gather(1, chosen), box_width.gather(1, chosen)
    place = torch.where(chosen < ATTEMPTS, draws[:, -2:].double(), 0.5)  # [B, 2]
    top = (place[:, :1] * (height - box_height + 1)).floor()
    left = (place[:, 1:] * (width - box_width + 1)).floor()
    return torch.cat([top, left, box_height, box_width], 1).long()


def centre_boxes(sizes: Tensor) -> Tensor:
    """The largest square in the middle of each frame: ``sizes`` ``[B, 2]`` -> ``[B, 4]`` (top, left, height, width)."""
    side = sizes.min(dim=1, keepdim=True).values
    corner = ((sizes - side) / 2).round().long()
    return torch.cat([corner, side, side], 1)


def resample_weights(starts: Tensor, lengths: Tensor, num_in: int, num_out: int, mirrored: Tensor) -> Tensor:
    """Weights that map one axis of each clip from its box to ``num_out`` pixels: linear interpolation, antialiased.

    Args:
        starts: ``[B]`` first pixel of the box.
        lengths: ``[B]`` pixels in the box.
        num_in: pixels of the padded input.
        num_out: pixels of the output.
        mirrored: ``[B]`` bool, True = the output runs backwards.

    Returns:
        ``[B, num_out, num_in]`` float32, every row sums to 1.
    """
    device = starts.device
    scale = (lengths.double() / num_out)[:, None, None]  # [B, 1, 1]
    places = torch.arange(num_out, device=device, dtype=torch.float64)
    places = torch.where(mirrored[:, None], num_out - 1 - places, places).unsqueeze(2)  # [B, num_out, 1]
    pixels = torch.arange(num_in, device=device)  # [num_in]
    distance = pixels + 0.5 - (starts[:, None, None] + (places + 0.5) * scale)  # [B, num_out, num_in]
    weights = (1 - distance.abs() / scale.clamp(min=1)).clamp(min=0)
    in_box = (pixels >= starts[:, None]) & (pixels < (starts + lengths)[:, None])  # [B, num_in]
    weights = weights * in_box[:, None]
    return (weights / weights.sum(dim=2, keepdim=True)).float()


def resample(frames: Tensor, boxes: Tensor, size: int, mirrored: Tensor) -> Tensor:
    """Cut each clip's box out of all its frames, resize it to ``size x size``, mirror it left-right where asked.

    Args:
        frames: ``[B, T, C, H, Wd]`` uint8 or float, padded right and below.
        boxes: ``[B, 4]`` (top, left, height, width), same device.
        size: output side in pixels.
        mirrored: ``[B]`` bool, same device.

    Returns:
        ``[B, T, C, size, size]`` float32 in the input's range.
    """
    num_clips, num_frames, channels, height, width = frames.shape
    top, left, box_height, box_width = boxes.unbind(1)
    rows = resample_weights(top, box_height, height, size, torch.zeros_like(mirrored))  # [B, size, H]
    columns = resample_weights(left, box_width, width, size, mirrored)  # [B, size, Wd]
    # Columns first: the frames then enter as one tall matrix per clip, without a copy per frame.
    tall = frames.reshape(num_clips, -1, width).float()  # [B, T*C*H, Wd]
    narrow = torch.bmm(tall, columns.transpose(1, 2)).view(num_clips, num_frames * channels, height, size)
    return torch.matmul(rows[:, None], narrow).view(num_clips, num_frames, channels, size, size)


class FrameFrontEnd(nn.Module):
    """Ragged uint8 frames -> ``[B, 3, T, size, size]`` normalised; one box and one flip for all frames of a clip.

    In training mode the box is random and half of the clips (``flip``) are mirrored; in evaluation mode the box is the
    largest square in the middle.

    Args:
        size: output side, pixels.
        mean: per channel, of values in [0, 1].
        std: per channel; the output is ``(x / 255 - mean) / std``.
        crop_scale: area of the random box as a share of the frame, smallest and largest.
        flip: probability of a left-right mirror.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], crop_scale: tuple[float, float], flip: float
    ) -> None:
        super().__init__()
        self.size = size
        self.crop_scale = crop_scale
        self.flip = flip
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self,
        frames: Tensor,
        sizes: Tensor,
        seeds: Tensor,
        mixing: Mixing | None = None,
        cuts: Cuts | None = None,
    ) -> Tensor:
        """``frames`` ``[B, T, 3, H, Wd]`` uint8, their true ``sizes`` ``[B, 2]`` (H, Wd), ``seeds`` ``[B]`` -> see the class.

        ``sizes`` and ``seeds`` are best left on the CPU, where the boxes are drawn; the frames may be anywhere. ``mixing``
        mixes the pixels that are left, frame by frame; ``cuts`` pastes boxes of them.
        """
        device = self.mean.device
        if self.training:
            boxes = random_boxes(sizes.cpu(), uniform_draws(seeds, "crop", 2 * ATTEMPTS + 2), self.crop_scale)
            mirrored = uniform_draws(seeds, "flip", 1)[:, 0] < self.flip
        else:
            boxes = centre_boxes(sizes.cpu())
            mirrored = torch.zeros(len(frames), dtype=torch.bool)
        boxes, mirrored = boxes.to(device, non_blocking=True), mirrored.to(device, non_blocking=True)
        pixels = resample(frames.to(device, non_blocking=True), boxes, self.size, mirrored)
        if mixing is not None:
            pixels = mix_rows(pixels, mixing)
        if cuts is not None:
            pixels = paste_boxes(pixels, cuts)
        return ((pixels - self.mean) / self.std).transpose(1, 2).contiguous()
