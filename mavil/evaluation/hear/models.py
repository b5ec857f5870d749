"""Any module with HEAR's functions as an embedder: what it is called with, what must come back, which weights it has."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mavil.structs import UserError

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
_PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Embedder:
    """A loaded model, the module whose functions it goes to, and where it runs."""

    module: ModuleType | Any
    model: nn.Module
    device: torch.device

    @property
    def sample_rate_hz(self) -> int:
        """What the waveforms must have."""
        return int(self.model.sample_rate)  # type: ignore[arg-type]

    def scenes(self, audio: Tensor) -> np.ndarray:
        """``[n, samples]`` in [-1, 1] to ``[n, D]`` float32.

        Raises:
            UserError: the module's answer has another shape, or a number that is not finite.
        """
        with torch.inference_mode():
            embeddings = self.module.get_scene_embeddings(audio.to(self.device), self.model)
        return self._checked(embeddings, "get_scene_embeddings", len(audio), 2)

    def frames(self, audio: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """``[n, samples]`` to ``[n, t, D]`` float32 and timestamps ``[n, t]`` float64 in milliseconds, ascending.

        Raises:
            UserError: as for ``scenes``, or the timestamps do not fit or ascend.
        """
        with torch.inference_mode():
            embeddings, timestamps = self.module.get_timestamp_embeddings(audio.to(self.device), self.model)
        values = self._checked(embeddings, "get_timestamp_embeddings", len(audio), 3)
        times = timestamps.detach().double().cpu().numpy()
        if times.shape != values.shape[:2] or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise UserError(
                f"{self._name}.get_timestamp_embeddings: timestamps {times.shape} for embeddings {values.shape} must be "
                "one ascending number of milliseconds each"
            )
        return values, times

    def identity(self) -> str:
        """Sixteen hexadecimal digits that change with the module, the weights, or how the model is put together."""
        sha = hashlib.sha256(f"{self._name}\n{self.sample_rate_hz}\n{self.model}".encode())
        for name, tensor in self.model.state_dict().items():
            sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()[:16]

    def probe(self) -> list[float]:
        """The scene embedding of one second of a fixed noise: it tells what the weights do not, e.g. another pooling."""
        generator = torch.Generator().manual_seed(0)
        noise = 0.1 * torch.randn(1, int(_PROBE_SECONDS * self.sample_rate_hz), generator=generator)
        return [float(value) for value in self.scenes(noise)[0]]

    @property
    def _name(self) -> str:
        return str(getattr(self.module, "__name__", self.module))

    def _checked(self, embeddings: Tensor, function: str, num_clips: int, num_axes: int) -> np.ndarray:
        if embeddings.ndim != num_axes or len(embeddings) != num_clips or 0 in embeddings.shape:
            raise UserError(f"{self._name}.{function}: shape {tuple(embeddings.shape)} for {num_clips} clips")
        if not embeddings.isfinite().all():
            raise UserError(f"{self._name}.{function}: an embedding is not finite; the model has diverged")
        return embeddings.detach().float().cpu().numpy()


def load_embedder(module_name: str, path: str, device: torch.device) -> Embedder:
    """Import a HEAR module and load its model.

    Raises:
        UserError: there is no such module, or it lacks a function of the API or a ``sample_rate``.
    """
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{module_name}: cannot be imported ({error}); install it or correct --module") from None
    if missing := [name for name in FUNCTIONS if not hasattr(module, name)]:
        raise UserError(f"{module_name} has no {missing[0]}: it is no HEAR module, which needs {', '.join(FUNCTIONS)}")
    model = module.load_model(path)
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "sample_rate", None), int):
        raise UserError(
            f"{module_name}.load_model: a torch module with an int sample_rate is expected, not {type(model)}"
        )
    return Embedder(module, model.to(device).eval(), device)
