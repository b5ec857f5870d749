"""The encoders as graphs: raw waveform or frames in, embedding out; for torch.export, AOTInductor and ONNX.

One file holds one modality. Its batch is of any size, everything else has the size of the recipe: a waveform has exactly
``audio.seconds`` at 16 kHz, frames are ``video.num_frames`` squares of ``video.size`` pixels. What comes out is what
``embed_audio`` or ``embed_video`` of ``mavil.load`` gives for one such window.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mavil.config import Recipe, VideoBranch
from mavil.export.network import unloaded_network
from mavil.export.parts import Exported
from mavil.export.subfolders import new_folder
from mavil.export.waveforms import WaveformFrontEnd, front_end_of
from mavil.models.masked import MaskedLearner
from mavil.models.tokens import patchify
from mavil.models.weights import load_parts
from mavil.structs import SAMPLE_RATE, Modality, UserError

INPUTS: dict[Modality, str] = {"audio": "waveform", "video": "frames"}
"""Name of a graph's one input."""
OUTPUT = "embedding"
"""Name of its one output."""
BATCH = "batch"
"""Name of the axis that may have any size."""
EXAMPLE_CLIPS = 2
"""Clips in the input that is traced: with one, torch takes the batch's size for a constant."""
FACTS = "mavil.json"
"""What :func:`facts` says, inside a ``.pt2``."""


class AudioGraph(nn.Module):
    """``[B, L]`` float32 waveforms in [-1, 1], 16 kHz, L the samples of ``audio.seconds``, to ``[B, Z]`` of length 1."""

    def __init__(self, front_end: WaveformFrontEnd, network: MaskedLearner) -> None:
        super().__init__()
        self.front_end = front_end
        self.network = network

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class."""
        patches = patchify(self.front_end(waveform), self.network.grid("audio"))
        return F.normalize(self.network.embed("audio", patches), dim=-1)


class VideoGraph(nn.Module):
    """``[B, T, 3, H, H]`` uint8 frames, cropped and resized, to ``[B, Z]`` of length 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, video: VideoBranch, network: MaskedLearner) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(video.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(video.std).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        values = ((frames.float() - self.mean) / self.std).transpose(1, 2)  # [B, 3, T, H, H]
        patches = patchify(values, self.network.grid("video"))
        return F.normalize(self.network.embed("video", patches), dim=-1)


def build_graph(exported: Exported, modality: Modality) -> nn.Module:
    """The graph of one modality, with the weights, on the CPU, in evaluation mode.

    Raises:
        UserError: weights that do not fit the recipe.
    """
    recipe = exported.recipe
    network = unloaded_network(recipe)
    load_parts(network.parts(), exported.parts, recipe.name)
    graph: nn.Module
    if modality == "audio":
        assert recipe.audio is not None
        graph = AudioGraph(front_end_of(recipe.audio), network)
    else:
        assert recipe.video is not None
        graph = VideoGraph(recipe.video, network)
    return graph.eval().requires_grad_(False)


def example_input(recipe: Recipe, modality: Modality) -> Tensor:
    """Noise of the right shape and type, always the same: ``EXAMPLE_CLIPS`` clips of it."""
    generator = torch.Generator().manual_seed(0)
    if modality == "audio":
        assert recipe.audio is not None
        return 0.1 * torch.randn(EXAMPLE_CLIPS, round(recipe.audio.seconds * SAMPLE_RATE), generator=generator)
    video = recipe.video
    assert video is not None
    shape = (EXAMPLE_CLIPS, video.num_frames, 3, video.size, video.size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@torch.no_grad()
def trace(graph: nn.Module, example: Tensor) -> ExportedProgram:
    """The graph as ``torch.export`` records it, for batches of any size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        # Strict: the source is read, and len(tokens) stays the size of the batch instead of becoming a number.
        return torch.export.export(graph, (example,), dynamic_shapes=({0: Dim(BATCH)},), strict=True)


def facts(exported: Exported, modality: Modality, weights_sha256: str) -> dict[str, Any]:
    """What whoever runs a graph has to know, for JSON."""
    recipe = exported.recipe
    told: dict[str, Any] = {"modality": modality, "recipe": recipe.name, "weights_sha256": weights_sha256}
    told |= {"input": INPUTS[modality], "input_shape": shape_of(recipe, modality), "output": OUTPUT}
    if modality == "audio":
        audio = recipe.audio
        assert audio is not None
        return told | {
            "sample_rate_hz": SAMPLE_RATE,
            "window_seconds": audio.seconds,
            "spectrogram": audio.spectrogram,
            "log_mel_mean": audio.mean,
            "log_mel_std": audio.std,
            "std_factor": audio.std_factor,
        }
    video = recipe.video
    assert video is not None
    return told | {
        "frames_per_second": video.frames_per_second,
        "window_seconds": video.seconds,
        "mean": list(video.mean),
        "std": list(video.std),
    }


def shape_of(recipe: Recipe, modality: Modality) -> str:
    """Of the input, for people."""
    example = example_input(recipe, modality)
    return (
        f"{str(example.dtype).removeprefix('torch.')} [{BATCH}, {', '.join(str(size) for size in example.shape[1:])}]"
    )


def write_torch_export(target: Path, exported: Exported, weights_sha256: str) -> list[str]:
    """Write a folder with ``audio.pt2`` and ``video.pt2``, as many as there are modalities; return lines about them.

    ``torch.export.load("audio.pt2").module()`` makes a module of one. torch's format can hold pickles, as ours does not: load
    only what you trust.

    Raises:
        UserError: the folder is there already or cannot be written, or a window is too short for a graph.
    """
    lines = []
    with new_folder(target) as folder:
        for modality in exported.recipe.modalities:
            program = trace(build_graph(exported, modality), example_input(exported.recipe, modality))
            told = json.dumps(facts(exported, modality, weights_sha256))
            torch.export.save(program, folder / f"{modality}.pt2", extra_files={FACTS: told})
            lines.append(
                f"{target / modality}.pt2: torch.export, {INPUTS[modality]} {shape_of(exported.recipe, modality)}"
            )
    return lines


def write_compiled(target: Path, exported: Exported, weights_sha256: str) -> list[str]:
    """Write a folder with ``audio.pt2`` and ``video.pt2``, compiled by AOTInductor for this machine's CPU; return lines.

    ``torch._inductor.aoti_load_package("audio.pt2")`` makes a function of one, in C++ the class of that name: no Python is
    needed there.

    Raises:
        UserError: there is no C++ compiler, or as :func:`write_torch_export`.
    """
    check_compiler()
    lines = []
    with new_folder(target) as folder:
        for modality in exported.recipe.modalities:
            program = trace(build_graph(exported, modality), example_input(exported.recipe, modality))
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(folder / f"{modality}.pt2"),
                inductor_configs={"aot_inductor.metadata": {"weights_sha256": weights_sha256}},
            )
            lines.append(
                f"{target / modality}.pt2: AOTInductor, {INPUTS[modality]} {shape_of(exported.recipe, modality)}"
            )
    return lines


def check_compiler() -> None:
    """What AOTInductor needs.

    Raises:
        UserError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["g++", "clang++"])):
        raise UserError(
            f"no C++ compiler ({compiler or 'g++ or clang++'}), and AOTInductor needs one: install it, name it in CXX, or leave "
            "--compiled out"
        )
