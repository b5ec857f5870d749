"""A module with HEAR's functions whose embedding is how much of a few pitches there is: it needs no training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mavil.structs import UserError

SAMPLE_RATE = 16000
PITCHES_HZ = (500.0, 1000.0, 2000.0, 4000.0)
HOP, WINDOW = 800, 1600


class ToneModel(nn.Module):
    def __init__(self, gain: float = 1.0, floor: float = 0.0) -> None:
        super().__init__()
        self.sample_rate = SAMPLE_RATE
        self.scene_embedding_size = self.timestamp_embedding_size = len(PITCHES_HZ)
        self.gain = nn.Parameter(torch.tensor(gain))
        self.calls: list[int] = []
        self.floor = floor
        """Part of what it computes, and not of its weights."""


def load_model(path: str = "") -> ToneModel:
    return ToneModel(float(path) if path else 1.0)


def get_timestamp_embeddings(audio: Tensor, model: ToneModel) -> tuple[Tensor, Tensor]:
    if audio.shape[1] < WINDOW:
        raise UserError(f"{audio.shape[1]} samples are shorter than one window of {WINDOW}")
    model.calls.append(len(audio))
    windows = audio.unfold(1, WINDOW, HOP)  # [n, t, WINDOW]
    seconds = torch.arange(WINDOW) / SAMPLE_RATE
    waves = torch.exp(2j * torch.pi * seconds * torch.tensor(PITCHES_HZ)[:, None])
    amount = (windows.to(torch.complex64) @ waves.T.to(torch.complex64)).abs() / WINDOW
    centres = (torch.arange(windows.shape[1]) * HOP + WINDOW / 2) / SAMPLE_RATE * 1000
    return model.gain * amount + model.floor, centres.expand(len(audio), -1)


def get_scene_embeddings(audio: Tensor, model: ToneModel) -> Tensor:
    return get_timestamp_embeddings(audio, model)[0].mean(1)
