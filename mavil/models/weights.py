"""Weights of an earlier run into a model: a part either fits in every tensor or is refused."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mavil.structs import UserError


def load_parts(parts: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
    """Load each named part from a checkpoint's ``weights``; parts that only the checkpoint has are left there.

    Raises:
        UserError: a part is not in the checkpoint, or its tensors have other names or shapes.
    """
    for name, module in parts.items():
        if name not in weights:
            held = ", ".join(sorted(weights)) or "nothing"
            raise UserError(
                f"{source} holds no {name} (it holds {held}): start from a run with that part, or leave the part out"
            )
        _check_same_tensors(name, module.state_dict(), weights[name], source)
        module.load_state_dict(dict(weights[name]))


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
