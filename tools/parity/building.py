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
from mavil.models.tokens import position_table, select
from mavil.models.weights import Converted, convert, read_checkpoint
from mavil.structs import MaskedView, TokenGrid, UserError
from tools.parity.checks import TABLE, Checks

HAVE_A_LAST_NORM = ("_encoder", "fusion")
"""Parts of ours that some originals have without their last norm: MAViL, CAV-MAE, every fine-tuned model."""


NOTHING_LOST = ("dead", "computed here", "counts training steps", "read as")
"""Beginnings of the reasons for which conversion leaves out a tensor that nobody misses."""


class Weights:
    """The converted state dict of a file, to be put into modules.

    Args:
        checks: of the file; tensors that conversion leaves out without a good reason become a note there.
        patch: as in :func:`mavil.models.weights.convert`.
    """

    def __init__(self, checks: Checks, patch: tuple[int, ...] | None = None) -> None:
        self.checks = checks
        cut = None if patch is None else (patch[0], patch[1])
        self.converted: Converted = convert(_read_back(checks), str(checks.fixture.path), cut)
        self._filled: dict[str, nn.Module] = {}
        left = [name for name, reason in self.converted.unused.items() if not reason.startswith(NOTHING_LOST)]
        if left:
            checks.notes.append(f"{len(left)} tensors of the file have no place in our model: {', '.join(left[:4])}")

    def fill(self, parts: Mapping[str, nn.Module], tables: Mapping[str, Tensor] | None = None) -> None:
        """Load every part, exactly, and make it ready for evaluation.

        ``tables`` are position tables by part, of files whose own are left out in conversion because ours are the same.

        Raises:
            UserError: names or shapes that do not fit.
        """
        for part, module in parts.items():
            tensors = dict(self.converted.parts.get(part, {}))
            if tables and part in tables:
                tensors["pos_embed"] = tables[part]
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

    def sources_of(self, model: nn.Module) -> dict[str, str]:
        """The file's name of every parameter of a model that was filled from it, by the model's own name."""
        names = {
            id(p): f"{part}.{name}" for part, module in self._filled.items() for name, p in module.named_parameters()
        }
        parameters = {name: self.converted.origin.get(names.get(id(p), "")) for name, p in model.named_parameters()}
        return {name: sources[0] for name, sources in parameters.items() if sources}

    def gradients(self) -> dict[str, Tensor]:
        """Every gradient after a backward, by the file's name of the parameter and in its shape; only of those that have one."""
        shapes = {name: tensor.shape for name, tensor in self.checks.fixture.get("state_dict").items()}
        found: dict[str, Tensor] = {}
        for part, module in self._filled.items():
            for name, parameter in module.named_parameters():
                sources = self.converted.origin.get(f"{part}.{name}", ())
                if parameter.grad is None or not sources:
                    continue
                # What was joined lies one after the other along the first axis: query, key, value.
                lengths = [shapes[source][0] for source in sources] if len(sources) > 1 else [len(parameter)]
                for source, gradient in zip(sources, parameter.grad.split(lengths), strict=True):
                    found[source] = gradient.reshape(shapes[source])
        return found

    def gradient_norms(self) -> dict[str, float]:
        """L2 norms of :meth:`gradients`."""
        return {name: float(gradient.double().norm()) for name, gradient in self.gradients().items()}

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


def stack_of(config: Mapping[str, Any], depth: str, prefix: str = "", **options: bool) -> Stack:
    """The size of a row of blocks; ``depth`` is its key, ``prefix`` that of width and heads (``decoder_``)."""
    return Stack(
        width=int(config[f"{prefix}embed_dim"]),
        depth=int(config[depth]),
        num_heads=int(config[f"{prefix}num_heads"]),
        mlp_ratio=float(config["mlp_ratio"]),
        layer_norm_eps=float(config["layer_norm_eps"]),
        **options,
    )


def build_encoder(grid: TokenGrid, stack: Stack, **options: bool) -> Encoder:
    """An encoder whose table will come from the file: of its kinds the one that any width allows is taken."""
    return Encoder(grid, stack, any_table(grid), **options)


def any_table(grid: TokenGrid) -> str:
    """A kind of position table that this grid allows."""
    return "sincos_2d" if len(grid.cells) == 2 else "tiled_2d"


def compare_table(
    checks: Checks, name: str, stored: Tensor, grid: TokenGrid, kind: str, num_prefix: int, limit: float = TABLE
) -> None:
    """A position table of a file ``[1, c + N, width]`` with ours of that kind, if it is one of sines and cosines at all.

    Every row of such a table has the length ``sqrt(width / 2)``: a file may hold trained or random values instead, with which
    a model computes all the same.
    """
    if checks.is_float64:
        return
    width = stored.shape[-1]
    lengths = stored[0, num_prefix:].square().sum(dim=1)
    if float((lengths - width / 2).abs().median()) > 1e-3 * width:
        checks.notes.append(f"{name}: no table of sines and cosines, taken as it is")
        return
    ours = position_table(grid, width, kind, num_prefix)
    checks.add(name, ours, stored, limit, "absolute", kind)


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
