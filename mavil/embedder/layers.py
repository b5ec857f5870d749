"""Tokens of every layer of an encoder or of the fusion, window by window, with their times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal

import torch
from torch import Tensor, nn

from mavil.config import AudioBranch, VideoBranch
from mavil.embedder.encoding import WindowEncoder, has
from mavil.embedder.network import fused
from mavil.embedder.reading import OpenClip
from mavil.embedder.windows import Array, Span
from mavil.engine.precision import autocast
from mavil.export.network import FineTunedEncoders
from mavil.features.timing import Timing
from mavil.models.tokens import patchify
from mavil.structs import SAMPLE_RATE, Modality, Sample, TokenGrid, UserError

Layers = Literal["all", "last"] | int | Sequence[int]
Of = Literal["encoder", "fusion"]
LARGEST_BYTES = 2**31
"""Of the tokens of one call [our choice]: all 13 layers of a ViT-B over nearly three minutes of sound."""


@dataclass(frozen=True)
class LayerTokens(Generic[Array]):
    """Tokens of a clip's windows; torch tensors or numpy arrays as the model was loaded for.

    Attributes:
        values: ``[n, layers, N, D]`` float32: patch tokens of each window, in the order of the grid.
        cls: ``[n, layers, D]``, or ``None`` where the encoder has no CLS token.
        layers: the number of each layer.
        times: ``[n, N]`` float32, s of the clip: the middle of what each token stands for. Tokens beyond the clip's end are
            padding, as in training.
        starts, ends: ``[n]`` float32, s: of each window.
        grid: how the input is cut; ``grid.cells`` unflattens N.
    """

    values: Array
    cls: Array | None
    layers: tuple[int, ...]
    times: Array
    starts: Array
    ends: Array
    grid: TokenGrid


def tokens_of_clip(
    windows: WindowEncoder,
    clip: OpenClip,
    modality: Modality,
    layers: Layers,
    of: Of,
    hop_seconds: float | None,
) -> LayerTokens[Tensor]:
    """See :meth:`mavil.embedder.embedder.Embedder.tokens`."""
    chosen = _chosen(windows, modality, layers, of)
    if modality not in clip.modalities:
        raise UserError(f"{clip.name} has no {modality}: its tokens cannot be taken")
    spans, encoder = clip.spans(hop_seconds), windows.model.encoder(modality)
    num_bytes = 4 * len(spans) * len(chosen) * (encoder.grid.num_tokens + encoder.num_prefix) * encoder.width
    if num_bytes > LARGEST_BYTES:
        raise UserError(
            f"{clip.name}: {len(chosen)} layers of {len(spans)} windows take {num_bytes / 2**30:.1f} GiB, more than "
            f"{LARGEST_BYTES / 2**30:g}: ask for fewer layers, or give a shorter clip"
        )
    pieces: list[Tensor] = []
    used: list[Span] = []
    for span, sample in zip(spans, clip.samples(spans), strict=True):
        if has(sample, modality):
            used.append(span)
            pieces.append(_layers_of(windows, sample, modality, chosen, of, layers == "last"))
    values, prefix = torch.stack(pieces), encoder.num_prefix
    begins = torch.tensor([clip.places(span)[modality] for span in used], dtype=torch.float64)
    branch = windows.recipe.branch(modality)
    assert branch is not None
    return LayerTokens(
        values=values[:, :, prefix:],
        cls=values[:, :, 0] if prefix else None,
        layers=tuple(chosen),
        times=(begins[:, None] + _centres(branch)).float(),
        starts=torch.tensor([span.start for span in used]),
        ends=torch.tensor([span.end for span in used]),
        grid=encoder.grid,
    )


@torch.no_grad()
def _layers_of(
    windows: WindowEncoder, sample: Sample, modality: Modality, chosen: Sequence[int], of: Of, is_last: bool
) -> Tensor:
    """``[layers, c + N, D]`` float32 of one window, on the CPU."""
    model = windows.model
    modalities = [m for m in windows.modalities if has(sample, m) and (of == "fusion" or m == modality)]
    inputs = windows.inputs([sample], modalities)
    with autocast(windows.device, windows.precision):
        patches = {m: patchify(inputs.of(m), model.grid(m)) for m in modalities}
        if of == "fusion":
            raw = {m: model.encoder(m)(values) for m, values in patches.items()}
            outputs, norm = fused(model, raw)[modality]
            numbered: Iterable[tuple[int, Tensor]] = enumerate(outputs, start=1)
        else:
            encoder = model.encoder(modality)
            norm = nn.Identity() if isinstance(model, FineTunedEncoders) else encoder.norm
            numbered = enumerate(encoder.layers(patches[modality]))
        held = {number: tokens[0] for number, tokens in numbered if number in chosen}
        taken = torch.stack([norm(held[number]) if is_last else held[number] for number in chosen])
    return taken.float().cpu()


def _chosen(windows: WindowEncoder, modality: Modality, layers: Layers, of: Of) -> list[int]:
    """The numbers of the layers that are wanted."""
    if of not in ("encoder", "fusion"):
        raise UserError(f"of={of!r}: choose encoder or fusion")
    if of == "fusion" and windows.model.fusion is None:
        raise UserError(f"{windows.source} has no fusion: take of='encoder'")
    fusion = windows.model.fusion
    depth = fusion.stack.depth if of == "fusion" and fusion is not None else len(windows.model.encoder(modality).blocks)
    known = range(1 if of == "fusion" else 0, depth + 1)
    if layers == "all":
        return list(known)
    if layers == "last":
        return [depth]
    wanted = [layers] if isinstance(layers, int) else layers
    if isinstance(wanted, str) or not wanted or any(isinstance(n, bool) or n not in known for n in wanted):
        raise UserError(
            f"layers={layers!r}: choose all, last, or numbers from {known.start} to {depth}, the blocks of the {of}"
        )
    return list(wanted)


def _centres(branch: AudioBranch | VideoBranch) -> Tensor:
    """``[N]`` float64: the middle of each token, s from the beginning of the input."""
    grid = branch.grid()
    if isinstance(branch, AudioBranch):
        timing = Timing(grid, branch.spectrogram)
        samples = timing.first_centre + timing.column_samples * timing.column_of_token(timing.columns).double()
        return samples / SAMPLE_RATE
    frames, rows, columns = grid.cells
    first = torch.arange(frames, dtype=torch.float64) * grid.patch[0]
    centres = (first + (grid.patch[0] - 1) / 2) / branch.frames_per_second
    return centres.repeat_interleave(rows * columns)
