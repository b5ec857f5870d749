"""Batch -> Inputs, on the device: spectrograms and frames made ready for a model, with the augmentation of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mavil.data.frames import FrameFrontEnd
from mavil.data.spectrogram import AudioFrontEnd
from mavil.structs import Batch, Inputs


class Prepare(nn.Module):
    """One front end per modality; ``None`` leaves that modality out.

    It works on the device its buffers are on (``prepare.to("cuda")``) and takes batches from anywhere. Best are batches as
    the loader gives them, on the CPU: random numbers and boxes are made there, and reading seeds and sizes back from a GPU
    would wait for all work queued on it. It keeps no gradient and stays in float32 under autocast. The result of a clip does
    not depend on which clips it shares the batch with, nor on what they lack; a modality that a clip lacks is exactly zero.

    Args:
        audio: waveforms to spectrograms.
        video: frames to frames.
        training: with random augmentation; switches the front ends' mode.
    """

    def __init__(self, audio: AudioFrontEnd | None, video: FrameFrontEnd | None, training: bool) -> None:
        super().__init__()
        self.audio = audio
        self.video = video
        self.train(training)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Inputs:
        """The inputs, all on this module's device.

        Raises:
            ValueError: the batch lacks a modality that has a front end.
        """
        device = next(self.buffers()).device
        inputs = Inputs(keys=batch.keys, seeds=batch.seeds.to(device, non_blocking=True), metadata=batch.metadata)
        inputs.targets = _moved(batch.targets, device)
        with torch.autocast(device.type, enabled=False):
            if self.audio is not None:
                if batch.waveforms is None or batch.waveform_lengths is None:
                    raise ValueError("the batch has no waveforms: build the loader with 'audio' among its modalities")
                inputs.audio_present = _moved(batch.audio_present, device)
                spectrograms = self.audio(batch.waveforms, batch.waveform_lengths, batch.seeds)
                inputs.audio = _zero_where_absent(spectrograms, inputs.audio_present)
            if self.video is not None:
                if batch.frames is None or batch.frame_sizes is None:
                    raise ValueError("the batch has no frames: build the loader with 'video' among its modalities")
                inputs.video_present = _moved(batch.video_present, device)
                frames = self.video(batch.frames, batch.frame_sizes, batch.seeds)
                inputs.video = _zero_where_absent(frames, inputs.video_present)
        return inputs


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


def _zero_where_absent(values: Tensor, present: Tensor | None) -> Tensor:
    """``values`` ``[B, ...]`` with the rows of absent clips zero; where all are present, as they are."""
    if present is None:
        return values
    return values.masked_fill(~present.view(-1, *[1] * (values.ndim - 1)), 0.0)


def prepared(batches: Iterable[Batch], prepare: Prepare, device: torch.device | str) -> Iterator[Inputs]:
    """Every batch of a loader as inputs on ``device``."""
    prepare = prepare.to(device)
    for batch in batches:
        yield prepare(batch)
