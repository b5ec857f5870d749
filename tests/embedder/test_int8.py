from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from mavil.embedder.int8 import to_int8
from mavil.models.build import build_masked
from mavil.models.lean import LinearOfGelu
from mavil.models.masked import MaskedLearner
from mavil.models.tokens import patchify
from mavil.structs import MODALITIES, UserError
from tests.support.recipes import random_inputs, tiny_recipe


def embeddings(model: MaskedLearner) -> torch.Tensor:
    inputs = random_inputs(3)
    return torch.cat([model.embed(m, patchify(inputs.of(m), model.grid(m))) for m in MODALITIES])


@torch.no_grad()
def test_every_linear_layer_is_replaced_and_embeddings_stay_near() -> None:
    model = build_masked(tiny_recipe()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = embeddings(model)
    cheap = to_int8(model)
    assert sum(isinstance(layer, LinearOfGelu) for layer in model.modules()) > 0
    assert not [name for name, layer in cheap.named_modules() if type(layer) in (nn.Linear, LinearOfGelu)]
    found = embeddings(cheap)
    assert cosine_similarity(found, expected).min() > 0.995
    assert (found - expected).abs().max() > 1e-6
    # The model that was given is as it was.
    assert torch.equal(embeddings(model), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_torch_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Didn't find engine for operation quantized::linear_prepack NoQEngine")

    monkeypatch.setattr("torch.ao.quantization.quantize_dynamic", fails)
    with pytest.raises(UserError, match=r"precision=int8: torch .* cannot do it here \(Didn't find engine"):
        to_int8(build_masked(tiny_recipe()))
