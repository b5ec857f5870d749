"""Batch -> Inputs, on the device: spectrograms and frames made ready for a model, with the augmentation of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mavil.data.cutmix import Cuts, draw_cuts
from mavil.data.frames import FrameFrontEnd
from mavil.data.mixup import Mixing, draw_mixing, mix_rows
from mavil.data.spectrogram import AudioFrontEnd
from mavil.structs import Batch, Inputs


class Prepare(nn.Module):
    """One front end per modality; ``None`` leaves that modality out.

    It works on the device its buffers are on (``prepare.to("cuda")``) and takes batches from anywhere. Best are batches as
    the loader gives them, on the CPU: random numbers and boxes are made there, and reading seeds and sizes back from a GPU
    would wait for all work queued on it. It keeps no gradient and stays in float32 under autocast. A modality that a clip
    lacks is exactly zero.

    The result of a clip does not depend on which clips it shares the batch with, nor on what they lack, but for three
    exceptions that somebody has to ask for: mixup and cutmix in training, and a sound front end that takes the statistics of
    the batch.

    Args:
        audio: waveforms to spectrograms.
        video: frames to frames.
        training: with random augmentation; switches the front ends' mode.
        mixup_probability: in training, share of the clips that are mixed with another one of their batch, targets and all
            (see :mod:`mavil.data.mixup`). A clip that lacks a modality of the batch is not mixed, nor is one alone.
        mixup_beta: the first clip's share is Beta(beta, beta) distributed [source AST].
        cutmix_probability: in training, share of the clips of which a piece is replaced by another one's (see
            :mod:`mavil.data.cutmix`), likewise; at most what mixup leaves, for a clip is mixed or cut, never both. A partner
            that is mixed gives what it is mixed to, and its mixed targets.
        cutmix_beta: what a clip keeps is Beta(beta, beta) distributed [source CutMix].

    Raises:
        ValueError: more clips are to be mixed or cut than there are.
    """

    def __init__(
        self,
        audio: AudioFrontEnd | None,
        video: FrameFrontEnd | None,
        training: bool,
        mixup_probability: float = 0.0,
        mixup_beta: float = 10.0,
        cutmix_probability: float = 0.0,
        cutmix_beta: float = 1.0,
    ) -> None:
        super().__init__()
        if mixup_probability + cutmix_probability > 1:
            raise ValueError(
                f"a clip is mixed or cut, never both: probabilities {mixup_probability} and {cutmix_probability} exceed 1"
            )
        self.audio = audio
        self.video = video
        self.mixup_probability = mixup_probability
        self.mixup_beta = mixup_beta
        self.cutmix_probability = cutmix_probability
        self.cutmix_beta = cutmix_beta
        self.train(training)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Inputs:
        """The inputs, all on this module's device.

        Raises:
            ValueError: the batch lacks a modality that has a front end.
        """
        device = next(self.buffers()).device
        inputs = Inputs(keys=batch.keys, seeds=batch.seeds.to(device, non_blocking=True), metadata=batch.metadata)
        mixing, cuts = self._drawn(batch)
        mixing, cuts = None if mixing is None else mixing.to(device), None if cuts is None else cuts.to(device)
        inputs.targets = _mixed(_moved(batch.targets, device), mixing)
        inputs.targets = _mixed(inputs.targets, None if cuts is None else cuts.mixing)
        with torch.autocast(device.type, enabled=False):
            if self.audio is not None:
                if batch.waveforms is None or batch.waveform_lengths is None:
                    raise ValueError("the batch has no waveforms: build the loader with 'audio' among its modalities")
                inputs.audio_present = _moved(batch.audio_present, device)
                spectrograms = self.audio(
                    batch.waveforms, batch.waveform_lengths, batch.seeds, inputs.audio_present, mixing, cuts
                )
                inputs.audio = _zero_where_absent(spectrograms, inputs.audio_present)
            if self.video is not None:
                if batch.frames is None or batch.frame_sizes is None:
                    raise ValueError("the batch has no frames: build the loader with 'video' among its modalities")
                inputs.video_present = _moved(batch.video_present, device)
                frames = self.video(batch.frames, batch.frame_sizes, batch.seeds, mixing, cuts)
                inputs.video = _zero_where_absent(frames, inputs.video_present)
        return inputs

    def _drawn(self, batch: Batch) -> tuple[Mixing | None, Cuts | None]:
        """Who is mixed and who is cut; clips that lack a modality are neither, nor are they partners."""
        if not self.training or self.mixup_probability + self.cutmix_probability == 0:
            return None, None
        has_all = torch.ones(len(batch), dtype=torch.bool)
        for front_end, present in ((self.audio, batch.audio_present), (self.video, batch.video_present)):
            if front_end is not None and present is not None:
                has_all &= present.cpu()
        mixing = None
        if self.mixup_probability > 0:
            mixing = draw_mixing(batch.seeds, self.mixup_probability, self.mixup_beta, has_all)
        if self.cutmix_probability == 0:
            return mixing, None
        may_cut = has_all if mixing is None else has_all & ~mixing.is_mixed
        # Of those that mixup leaves, so many that cutmix_probability is the share of all.
        probability = self.cutmix_probability / (1 - self.mixup_probability)
        num_steps = None
        if self.audio is not None and batch.waveform_lengths is not None:
            num_steps = self.audio.true_steps(batch.waveform_lengths.cpu())
        side = None if self.video is None else self.video.size
        return mixing, draw_cuts(batch.seeds, probability, self.cutmix_beta, num_steps, side, may_cut, has_all)


def _mixed(targets: Tensor | None, mixing: Mixing | None) -> Tensor | None:
    return targets if targets is None or mixing is None else mix_rows(targets, mixing)


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
