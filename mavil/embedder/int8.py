"""A model's linear layers in 8 bits, for CPUs: weights once, activations as they come."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from mavil.models.lean import LinearOfGelu
from mavil.models.masked import MaskedLearner
from mavil.structs import UserError


def to_int8(model: MaskedLearner) -> MaskedLearner:
    """A copy whose linear layers multiply in int8: one scale per layer's weight, one per tensor of activations.

    Convolutions that embed patches, norms, attention and the mean stay in float32. No calibration data are needed [source torch,
    dynamic quantisation]. What it does to retrieval: ``python tools/benchmark.py embed``.

    Raises:
        UserError: this build of torch cannot multiply in int8, or no longer has dynamic quantisation.
    """
    model = copy.deepcopy(model).cpu().eval()
    for block in list(model.modules()):
        for name, layer in list(block.named_children()):
            if isinstance(layer, LinearOfGelu):
                setattr(block, name, nn.Sequential(nn.GELU(), _plain(layer)))
    try:
        from torch.ao.quantization import quantize_dynamic

        with warnings.catch_warnings():
            # Announced to move to torchao since 2.9, and still here in 2.12.
            warnings.simplefilter("ignore", DeprecationWarning)
            quantised: MaskedLearner = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"precision=int8: torch {torch.__version__} cannot do it here ({reason}): choose float32"
        ) from None
    return quantised


def _plain(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain
