"""``mavil.load``: a model made ready to embed files, waveforms and films."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from torch import Tensor

from mavil.embedder.embedder import Embedder
from mavil.embedder.encoding import WindowEncoder
from mavil.embedder.int8 import to_int8
from mavil.embedder.network import build_network
from mavil.embedder.results import Output
from mavil.embedder.sources import open_model
from mavil.engine.precision import Precision
from mavil.engine.process.runtime import choose_device
from mavil.structs import UserError

PRECISIONS: dict[str, Precision] = {"float32": "fp32", "bf16": "bf16", "int8": "fp32"}
"""And what everything but the linear layers computes in."""


@overload
def load(
    source: str | Path,
    checkpoint: str = ...,
    device: str | torch.device = ...,
    precision: str = ...,
    allow_pickle: bool = ...,
    output: Literal["torch"] = ...,
    changes: Sequence[str] = ...,
    allow_changed: bool = ...,
) -> Embedder[Tensor]: ...


@overload
def load(
    source: str | Path,
    checkpoint: str = ...,
    device: str | torch.device = ...,
    precision: str = ...,
    allow_pickle: bool = ...,
    *,
    output: Literal["numpy"],
    changes: Sequence[str] = ...,
    allow_changed: bool = ...,
) -> Embedder[np.ndarray]: ...


def load(
    source: str | Path,
    checkpoint: str = "newest",
    device: str | torch.device = "auto",
    precision: str = "float32",
    allow_pickle: bool = False,
    output: Output = "torch",
    changes: Sequence[str] = (),
    allow_changed: bool = False,
) -> Embedder[Any]:
    """A model that embeds clips.

    Args:
        source: a run folder, of pre-training or of a classifier; a folder of ``mavil export``, or its ``model.safetensors``;
            another project's checkpoint file (models of sound); or ``owner/name`` on the Hugging Face Hub, perhaps with
            ``@revision``.
        checkpoint: of a run: newest, best or a step.
        device: ``auto`` (CUDA where torch finds it), ``cpu``, ``cuda`` or ``cuda:1``. Results come back on the CPU.
        precision: ``float32``; ``bf16``: matrix products in bfloat16, results still float32; or, on a CPU, ``int8``: see
            :func:`~mavil.embedder.int8.to_int8`.
        allow_pickle: read a public checkpoint file that holds objects beside tensors; nothing of them runs.
        output: what the model gives back: ``torch`` tensors or ``numpy`` arrays.
        changes: ``key.path=value`` for the recipe, e.g. what a public checkpoint does not tell, or ``audio.num_steps=512``.
        allow_changed: load an export although its checksums say that weights or recipe were changed since.

    Raises:
        UserError: no such model, one that is damaged or tampered with, or a device or precision that there is not.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: choose {', '.join(PRECISIONS)}")
    if output not in ("torch", "numpy"):
        raise UserError(f"output={output}: choose torch or numpy")
    chosen = _device(device)
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"precision=bf16: {torch.cuda.get_device_name(chosen)} does not compute in it: choose float32")
    if precision == "int8" and chosen.type != "cpu":
        raise UserError("precision=int8 is for CPUs: add device='cpu', or choose bf16")
    opened = open_model(source, checkpoint, changes, allow_pickle, allow_changed)
    model = build_network(opened.recipe, opened.parts, opened.source, opened.grids)
    encoder = WindowEncoder(model, opened.recipe, opened.source, chosen, PRECISIONS[precision])
    embedder: Embedder[Any] = Embedder(encoder, output, opened.exported)
    if precision == "int8":
        _ = embedder.weights_digest  # of the weights as they are stored: quantised layers hold no such tensors
        encoder.model = to_int8(encoder.model)
    return embedder


def _device(device: str | torch.device) -> torch.device:
    name = str(device)
    if name in ("auto", "cpu", "cuda"):
        return choose_device(cast(Literal["auto", "cpu", "cuda"], name))
    kind, _, number = name.partition(":")
    if kind != "cuda" or not number.isdecimal():
        raise UserError(f"device={name}: choose auto, cpu, cuda or e.g. cuda:1")
    if int(number) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: torch finds {torch.cuda.device_count()} CUDA devices: choose auto, cpu or another"
        )
    return torch.device(name)
