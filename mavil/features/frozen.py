"""Frozen encoders of a run for whole clips: which layer is taken, and how its tokens are pooled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mavil.commands.assemble import CONFIG_FILE, read_recipe
from mavil.commands.starting import grids_of
from mavil.config import ClassifyTask, Recipe
from mavil.engine.checkpoints.reading import load_weights
from mavil.features.cached import weights_digest
from mavil.models.build import build_encoder
from mavil.models.encoder import Encoder
from mavil.models.tokens import patchify
from mavil.models.weights import load_parts
from mavil.structs import Inputs, Modality, UserError

POOLINGS = ("mean", "cls", "mean+cls")
POOLED_BYTES, TOKEN_BYTES = 4, 2
"""Of a number: pooled features are float32, tokens float16."""


@dataclass(frozen=True)
class FrozenOptions:
    """What of an encoder is taken.

    Attributes:
        layer: ``last``: what leaves the last block, through the norm that stands behind it in pre-training; a number: what
            leaves that block as it is, 0 is what enters the first; ``mean_of_last:4``: the mean of the last four blocks, each
            through that norm. A fine-tuned classifier has no such norm: its blocks' outputs are taken as they are.
        pooling: mean of the patch tokens without CLS, the CLS token, or both side by side.

    Raises:
        UserError: another layer or pooling.
    """

    layer: str = "last"
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"last|\d+|mean_of_last:[1-9]\d*", self.layer):
            raise UserError(f"--layer {self.layer}: write last, the number of a block, or e.g. mean_of_last:4")
        if self.pooling not in POOLINGS:
            raise UserError(f"--pooling {self.pooling}: write mean, cls or mean+cls")


class FrozenEncoders(nn.Module):
    """The encoders of some modalities, in evaluation mode; each clip's features depend on no other clip.

    The fusion takes no part: features of both modalities are those of the encoders, side by side.

    Args:
        encoders: by modality, with their weights.
        norms: what stands behind the last block of each.
        options: see :class:`FrozenOptions`.

    Raises:
        UserError: a layer or a CLS token that an encoder does not have.
    """

    def __init__(
        self, encoders: dict[Modality, Encoder], norms: dict[Modality, nn.Module], options: FrozenOptions
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({str(m): encoder for m, encoder in encoders.items()})
        self.norms = nn.ModuleDict({str(m): norm for m, norm in norms.items()})
        self.options = options
        for modality, encoder in encoders.items():
            depth = len(encoder.blocks)
            if _deepest(options.layer) > depth:
                raise UserError(f"--layer {options.layer}: the {modality} encoder has {depth} blocks")
            if "cls" in options.pooling and not encoder.num_prefix:
                raise UserError(
                    f"--pooling {options.pooling}: the {modality} encoder has no CLS token: use --pooling mean"
                )
        self.eval().requires_grad_(False)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it looks at, audio first."""
        return tuple(cast(Modality, name) for name in self.encoders)

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on: weights and choices."""
        state = {f"{m}.{name}": value for m in self.encoders for name, value in self.encoders[m].state_dict().items()}
        is_normed = {m: not isinstance(norm, nn.Identity) for m, norm in self.norms.items()}
        about = {"layer": self.options.layer, "pooling": self.options.pooling, "norm": is_normed}
        return {"weights": weights_digest(state), **about}

    def bytes_per_clip(self, has_tokens: bool) -> int:
        """Of what :meth:`forward` gives of one clip, as it is stored."""
        number = 0
        for encoder in map(self._encoder, self.modalities):
            number += encoder.width * POOLED_BYTES * (2 if self.options.pooling == "mean+cls" else 1)
            number += encoder.width * encoder.grid.num_tokens * TOKEN_BYTES if has_tokens else 0
        return number

    @torch.inference_mode()
    def forward(self, inputs: Inputs, has_tokens: bool) -> dict[str, Tensor]:
        """``audio`` and ``video`` ``[B, D or 2 D]`` float32 pooled; with tokens also ``audio_tokens`` ... ``[B, N, D]`` float16.

        Tokens are patch tokens without CLS. Rows of a modality that a clip lacks mean nothing.

        Raises:
            UserError: a feature is not finite.
        """
        found: dict[str, Tensor] = {}
        for modality in self.modalities:
            encoder = self._encoder(modality)
            tokens = self._layer(modality, encoder, patchify(inputs.of(modality), encoder.grid)).float()
            patches = tokens[:, encoder.num_prefix :]
            pooled = {"mean": patches.mean(dim=1), "cls": tokens[:, 0]}
            found[modality] = torch.cat([pooled[name] for name in self.options.pooling.split("+")], dim=1)
            stored = [found[modality]]
            if has_tokens:
                found[f"{modality}_tokens"] = patches.half()
                stored.append(found[f"{modality}_tokens"])
            if not all(bool(values.isfinite().all()) for values in stored):
                raise UserError(
                    f"{modality} features of layer {self.options.layer} are not finite, or too large for float16: the model "
                    "has diverged, or take --layer last"
                )
        return found

    def _layer(self, modality: Modality, encoder: Encoder, patches: Tensor) -> Tensor:
        """``[B, c + N, D]`` of the layer that is asked for; those above it are not computed."""
        layer, depth, norm = self.options.layer, len(encoder.blocks), self.norms[modality]
        outputs: Iterator[Tensor] = encoder.layers(patches)
        if layer.isdecimal():
            return next(tokens for number, tokens in enumerate(outputs) if number == int(layer))
        count = _deepest(layer)
        total = torch.zeros(())
        for number, tokens in enumerate(outputs):
            if number > depth - count:
                total = total.to(tokens.device) + norm(tokens)
        return total / count

    def _encoder(self, modality: Modality) -> Encoder:
        return cast(Encoder, self.encoders[modality])


def load_frozen(
    run: Path,
    recipe: Recipe,
    modalities: Sequence[Modality],
    options: FrozenOptions,
    which: str = "newest",
    is_random: bool = False,
) -> FrozenEncoders:
    """The encoders of a run, on the CPU.

    Args:
        run: folder of a pre-training or fine-tuning run.
        recipe: the run's, perhaps with another size of the input.
        modalities: the ones wanted, which the recipe has.
        options: what is taken of them.
        which: checkpoint; newest, best or a step.
        is_random: leave the weights as the recipe's seed draws them: a control.

    Raises:
        UserError: no such checkpoint, weights that do not fit, or as :class:`FrozenEncoders`.
    """
    encoders: dict[Modality, Encoder] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for modality in modalities:
            branch = recipe.branch(modality)
            assert branch is not None
            # Every layer is asked for by its number: none may be left out.
            tower = branch.encoder.model_copy(update={"layer_drop": 0.0})
            encoders[modality] = build_encoder(branch.model_copy(update={"encoder": tower}))
    if not is_random:
        held, own = grids_of(read_recipe(run, [])), grids_of(recipe)
        grids = {m: (held[m], own[m]) for m in modalities if m in held}
        weights = load_weights(run, which)
        load_parts({f"{m}_encoder": encoder for m, encoder in encoders.items()}, weights, str(run), grids)
    # A classifier pools what leaves its last block as it is; the norm behind it belongs to pre-training.
    is_classifier = isinstance(recipe.task, ClassifyTask)
    norms = {m: nn.Identity() if is_classifier else encoder.norm for m, encoder in encoders.items()}
    return FrozenEncoders(encoders, norms, options)


def recipe_of(run: Path, changes: list[str]) -> Recipe:
    """The recipe of a run folder, with changes.

    Raises:
        UserError: it is no run folder.
    """
    if not (run / CONFIG_FILE).is_file():
        raise UserError(
            f"{run} is not a run folder (no {CONFIG_FILE}): train one, or make one of a public checkpoint with mavil convert"
        )
    return read_recipe(run, changes)


def _deepest(layer: str) -> int:
    """The number of blocks that a choice of layers needs."""
    if layer == "last":
        return 1
    return int(layer.removeprefix("mean_of_last:"))
