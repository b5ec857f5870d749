"""Weights of an earlier run into a model: a part either fits in every tensor or is refused."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mavil.models.weights.positions import agree_where_both_know, resize_positions
from mavil.structs import MODALITIES, Modality, TokenGrid, UserError

Grids = Mapping[Modality, tuple[TokenGrid, TokenGrid]]
"""How each modality was cut where the weights come from, and how it is cut here."""


def load_parts(
    parts: Mapping[str, nn.Module],
    weights: Mapping[str, Mapping[str, Tensor]],
    source: str,
    grids: Grids | None = None,
    own_positions: bool = False,
) -> None:
    """Load each named part from a checkpoint's ``weights``; parts that only the checkpoint has are left there.

    With ``grids`` the input may have another size than there. A fixed position table is then the model's own, computed for
    the new size; a learned one, or a fixed one that was taken from another project, keeps the codes of the positions it
    knows, see :func:`resize_positions`; with ``own_positions`` every fixed table of another size is the model's own.

    Raises:
        UserError: a part is not in the checkpoint, its tensors have other names or shapes, or the input reaches beyond the
            positions it knows.
    """
    for name, module in parts.items():
        if name not in weights:
            held = ", ".join(sorted(weights)) or "nothing"
            raise UserError(
                f"{source} holds no {name} (it holds {held}): start from a run with that part, or leave the part out"
            )
        wanted = module.state_dict()
        learned = {key for key, _ in module.named_parameters()}
        tensors = dict(weights[name])
        for key, modality in tables_of(name).items():
            if grids and modality in grids and key in tensors and key in wanted:
                keeps_own = own_positions and key not in learned and grids[modality][0] != grids[modality][1]
                tensors[key] = (
                    wanted[key]
                    if keeps_own
                    else _fitted(f"{name}.{key}", tensors[key], wanted[key], grids[modality], key in learned, source)
                )
        _check_same_tensors(name, wanted, tensors, source)
        module.load_state_dict(tensors)


def tables_of(part: str) -> dict[str, Modality]:
    """Names of the position tables that a part may have, each with the modality it belongs to."""
    for modality in MODALITIES:
        if part.startswith(f"{modality}_"):
            return {"pos_embed": modality}
    return {f"{modality}_pos_embed": modality for modality in MODALITIES}


def _fitted(
    where: str, table: Tensor, own: Tensor, grids: tuple[TokenGrid, TokenGrid], is_learned: bool, source: str
) -> Tensor:
    """A table of the checkpoint for the grid here; ``own`` is the model's."""
    held, wanted = grids
    if held == wanted:
        return table
    try:
        if not is_learned and agree_where_both_know(table, held, own, wanted):
            return own
        return resize_positions(table, held, wanted)
    except ValueError as error:
        raise UserError(f"{source}: {where} does not fit: {error}") from error


def _check_same_tensors(name: str, wanted: Mapping[str, Tensor], held: Mapping[str, Tensor], source: str) -> None:
    for key, tensor in wanted.items():
        if key not in held:
            raise UserError(
                f"{source}: {name} lacks {key}: it was made with other model settings (a deeper model is asked for)"
            )
        if held[key].shape != tensor.shape:
            raise UserError(
                f"{source}: {name}.{key} is {tuple(held[key].shape)} there and {tuple(tensor.shape)} here: "
                "give the recipe the model settings of that run (its config.yaml)"
            )
    extra = sorted(set(held) - set(wanted))
    if extra:
        raise UserError(f"{source}: {name} has {len(extra)} tensors this recipe's model does not, e.g. {extra[0]}")
