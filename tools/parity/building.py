"""Our models in the size of a file and with its weights, through the same conversion that users' checkpoints pass."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mavil.models.encoder import Encoder
from mavil.models.layers import Stack
from mavil.models.tokens import select
from mavil.models.weights import Converted, convert, read_checkpoint
from mavil.structs import MaskedView, TokenGrid, UserError
from tools.parity.checks import Checks

HAVE_A_LAST_NORM = ("_encoder", "fusion")
"""Parts of ours that some originals have without their last norm: MAViL, CAV-MAE, every fine-tuned model."""


class Weights:
    """The converted state dict of a file, to be put into modules.

    Args:
        checks: of the file; tensors that conversion leaves out, other than dead ones, become a note there.
    """

    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self.converted: Converted = convert(_read_back(checks), str(checks.fixture.path))
        self._filled: dict[str, nn.Module] = {}
        left = [name for name, reason in self.converted.unused.items() if not reason.startswith("dead")]
        if left:
            checks.notes.append(f"{len(left)} tensors of the file have no place in our model: {', '.join(left[:4])}")

    def fill(self, parts: Mapping[str, nn.Module]) -> None:
        """Load every part, exactly, and make it ready for evaluation.

        Raises:
            UserError: names or shapes that do not fit.
        """
        for part, module in parts.items():
            tensors = self.converted.parts.get(part, {})
            try:
                missing, unexpected = module.load_state_dict(tensors, strict=False)
            except RuntimeError as error:
                raise UserError(f"{self.checks.fixture.path}: {part}: {str(error).splitlines()[-1].strip()}") from error
            missing = [name for name in missing if not (part.endswith(HAVE_A_LAST_NORM) and name.startswith("norm."))]
            if missing or unexpected:
                what = f"lacks {missing[0]}" if missing else f"has no place for {unexpected[0]}"
                raise UserError(f"{self.checks.fixture.path}: {part} {what}: weights and config do not belong together")
            module.to(self.checks.dtype).eval()
            self._filled[part] = module

    def gradient_norms(self) -> dict[str, float]:
        """L2 norm of every gradient after a backward, by the file's name of the parameter; 0 where there is none."""
        norms: dict[str, float] = {}
        for part, module in self._filled.items():
            for name, parameter in module.named_parameters():
                for source in self.converted.origin.get(f"{part}.{name}", ()):
                    gradient = parameter.grad
                    norms[source] = 0.0 if gradient is None else float(gradient.double().norm())
        return norms

    def forget_gradients(self) -> None:
        """Before another backward."""
        for module in self._filled.values():
            module.zero_grad(set_to_none=True)


def _read_back(checks: Checks) -> dict[str, Tensor]:
    """The file's state dict after a way through a checkpoint file, with DataParallel's prefix where it is stored that way too."""
    state: dict[str, Tensor] = checks.fixture.get("state_dict")
    wrapped = "state_dict_dataparallel"
    saved = checks.fixture.get(wrapped) if checks.fixture.has(wrapped) else state
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save({"model": saved}, path)
        found = read_checkpoint(path)
    if saved is not state:
        same = found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
        checks.condition(wrapped, same, "read as the plain one")
    return found


def stack_of(config: Mapping[str, Any], depth: str, prefix: str = "") -> Stack:
    """The size of a row of blocks; ``depth`` is its key, ``prefix`` that of width and heads (``decoder_``)."""
    return Stack(
        width=int(config[f"{prefix}embed_dim"]),
        depth=int(config[depth]),
        num_heads=int(config[f"{prefix}num_heads"]),
        mlp_ratio=float(config["mlp_ratio"]),
        layer_norm_eps=float(config["layer_norm_eps"]),
    )


def build_encoder(grid: TokenGrid, stack: Stack, **options: bool) -> Encoder:
    """An encoder whose table will come from the file: of its kinds the one that any width allows is taken."""
    return Encoder(grid, stack, "sincos_2d" if len(grid.cells) == 2 else "tiled_2d", **options)


def image_grid(side: int, patch: int, channels: int) -> TokenGrid:
    """Of pictures: clips of one frame."""
    return TokenGrid.of((1, side, side), (1, patch, patch), channels)


def view_of(is_masked: Tensor) -> MaskedView:
    """A stored mask ``[B, N]`` (1 = masked) as a view; visible tokens in token order."""
    order = is_masked.argsort(dim=1, stable=True)
    visible = int((is_masked[0] == 0).sum())
    return MaskedView(order[:, :visible], order[:, visible:], order.argsort(dim=1))


def at(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` ``[n]`` of the token axis, the last but one."""
    return tokens.index_select(-2, index.long())


def visible_only(patches: Tensor, view: MaskedView) -> Tensor:
    """The patches an encoder is given."""
    return select(patches, view.visible_ids)


@contextmanager
def tapped(blocks: Mapping[str, Iterable[nn.Module]]) -> Iterator[dict[str, Tensor]]:
    """Mean token of what each block puts out, ``[B, D]`` under ``name.number``; of several calls the last one.

    Blocks that a modality passes alone put their output under ``name.number.a`` or ``.v``, of the joint sequence under
    ``.joint`` as well.
    """
    taps: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, named: Mapping[str, Any], output: Tensor) -> None:
            use = {"audio": ".a", "video": ".v"}.get(str(named.get("alone")), ".joint")
            for key in (name, name + use):
                taps[key] = output.detach().mean(dim=1)

        return hook

    handles = [
        block.register_forward_hook(keep(f"{name}.{i}"), with_kwargs=True)
        for name, row in blocks.items()
        for i, block in enumerate(row)
    ]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of scores."""
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
