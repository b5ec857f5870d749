"""What a module keeps for its backward pass."""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def perturbed(module: nn.Module) -> nn.Module:
    """Every weight away from its initial value: biases from 0, norms from 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def kept_bytes(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, int]:
    """The output, and how much memory beside the weights' is kept for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*inputs)
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    return output, sum(count for place, count in kept.items() if place not in weights)
