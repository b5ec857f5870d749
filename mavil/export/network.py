"""The modules of an export as one network without decoders, before their weights come."""

from __future__ import annotations

from torch import Tensor

from mavil.config import ClassifyTask, PretrainTask, Recipe
from mavil.models.build import build_encoder, build_fusion
from mavil.models.encoder import Encoder
from mavil.models.masked import MaskedLearner, Projection
from mavil.structs import Modality


class FineTunedEncoders(MaskedLearner):
    """A classifier's encoders. It pools what leaves the last block as it is: the norm behind it is not trained there."""

    def pool(self, modality: Modality, tokens: Tensor, projects: bool = True) -> Tensor:
        """As :meth:`MaskedLearner.pool`, without norm, fusion and projection."""
        return self._pool(modality, tokens)


def unloaded_network(recipe: Recipe) -> MaskedLearner:
    """Modules for every tensor of an export, with random weights; ``embed`` gives what the run compares.

    A classifier whose head looks at normalised tokens of the fusion (``task.pooling: mean``) passes it with one modality too
    [source CAV-MAE]. Loaders of other projects fill the modules by name, so none is replaced here.
    """
    encoders: dict[Modality, Encoder] = {}
    for modality in recipe.modalities:
        branch = recipe.branch(modality)
        assert branch is not None
        encoders[modality] = build_encoder(branch)
    task = recipe.task
    if isinstance(task, ClassifyTask):
        fusion = build_fusion(recipe) if task.passes_fusion else None
        if task.pooling == "mean":
            return MaskedLearner(encoders, {}, fusion, pooled_from="fusion_alone")
        return FineTunedEncoders(encoders, {}, fusion)
    assert isinstance(task, PretrainTask)
    contrast, fusion = task.contrast, build_fusion(recipe)
    if contrast is None:
        return MaskedLearner(encoders, {}, fusion)
    sizes, projections = contrast.projection, {}
    if sizes is not None:
        projections = {m: Projection(e.width, sizes.hidden_width, sizes.width) for m, e in encoders.items()}
    return MaskedLearner(encoders, {}, fusion, contrast.pooled_from, contrast.pooling, projections)
