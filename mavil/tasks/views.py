"""Which masked views of a clip a step needs, and how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from mavil.config import Contrast
from mavil.config.masking import Masking, RandomMasking
from mavil.seeds import uniform_draws
from mavil.structs import Inputs, MaskedView, MaskedViews, Modality, TokenGrid
from mavil.tasks.masks import Noise, draw_mask, whole_view


@dataclass(frozen=True)
class ViewPlan:
    """Independent masks per modality and view [recalled]. The first view is predicted and compared; all are of one crop.

    Attributes:
        grids: by modality.
        mask_ratios: of the predicted views.
        contrast_mask_ratios: of views that are compared and nothing else, 0 for whole inputs; ``None`` compares the predicted
            ones, and adds encoder-only ones of the same ratio where more are compared than predicted [recalled, weak].
        num_predicted: views whose hidden tokens are predicted; 0 where clips are only compared.
        num_compared: views whose pooled tokens are compared.
        maskings: how tokens are chosen, of all views; each token by itself where a modality has none.
    """

    grids: Mapping[Modality, TokenGrid]
    mask_ratios: Mapping[Modality, float]
    contrast_mask_ratios: Mapping[Modality, float] | None = None
    num_predicted: int = 1
    num_compared: int = 0
    maskings: Mapping[Modality, Masking] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        grids: Mapping[Modality, TokenGrid],
        mask_ratios: Mapping[Modality, float],
        contrast: Contrast | None,
        num_predicted: int,
        maskings: Mapping[Modality, Masking] | None = None,
    ) -> ViewPlan:
        """The plan of a pre-training step: an intra-modal term needs two views, an inter-modal one needs one."""
        num_compared, own_ratios = 0, None
        if contrast is not None and contrast.inter_weight + contrast.intra_weight > 0:
            num_compared = 2 if contrast.intra_weight > 0 else 1
            own_ratios = {
                m: ratio
                for m, ratio in (("audio", contrast.audio_mask_ratio), ("video", contrast.video_mask_ratio))
                if m in grids and ratio is not None
            }
        ratios: Mapping[Modality, float] | None = own_ratios or None  # type: ignore[assignment]
        return cls(grids, mask_ratios, ratios, num_predicted, num_compared, maskings or {})

    def predicting_only(self) -> ViewPlan:
        """One predicted view and no other: what an evaluation looks at."""
        return replace(self, num_predicted=1, num_compared=0)

    def masking(self, modality: Modality) -> Masking:
        """How tokens of a modality are chosen."""
        return self.maskings.get(modality, RandomMasking())

    def num_visible(self, modality: Modality) -> int:
        """K of the first view: a predicted one, where there is any."""
        own = self.contrast_mask_ratios
        ratios = own if self.num_predicted == 0 and own is not None else self.mask_ratios
        return self._num_visible(modality, ratios[modality])

    def _num_visible(self, modality: Modality, ratio: float) -> int:
        grid = self.grids[modality]
        is_whole = ratio == 0 and self.contrast_mask_ratios is not None
        return grid.num_tokens if is_whole else self.masking(modality).num_visible(grid, ratio)

    def visible_tokens(self, modality: Modality) -> int:
        """Tokens of all views together that an encoder sees of one clip."""
        own = self.contrast_mask_ratios
        predicted = self._num_visible(modality, self.mask_ratios[modality])
        if own is not None:
            compared = self._num_visible(modality, own[modality])
            return self.num_predicted * predicted + self.num_compared * compared
        return max(self.num_predicted, self.num_compared) * predicted

    def draw(self, noise: Noise) -> dict[Modality, MaskedViews]:
        """The views of every modality."""
        return {modality: self._draw(modality, grid, noise) for modality, grid in self.grids.items()}

    def _draw(self, modality: Modality, grid: TokenGrid, noise: Noise) -> MaskedViews:
        def view(kind: str, number: int, ratio: float) -> MaskedView:
            return draw_mask(self.masking(modality), grid, ratio, noise, modality, f"{modality} {kind} {number}")

        ratio = self.mask_ratios[modality]
        predicted = [view("mask", i, ratio) for i in range(self.num_predicted)]
        if self.contrast_mask_ratios is not None:
            own = self.contrast_mask_ratios[modality]
            if own == 0:
                return MaskedViews(predicted, [whole_view(grid, noise, modality)] * self.num_compared)
            return MaskedViews(predicted, [view("contrast mask", i, own) for i in range(self.num_compared)])
        further = [view("mask", i, ratio) for i in range(self.num_predicted, self.num_compared)]
        return MaskedViews(predicted, [*predicted, *further][: self.num_compared])


def noise_of(inputs: Inputs) -> Noise:
    """Noise that is a function of each clip's seed only; drawn on the CPU, where seeds stay."""

    def noise(modality: Modality, purpose: str, count: int) -> Tensor:
        return uniform_draws(inputs.seeds, purpose, count).to(inputs.of(modality).device)

    return noise


def compared_only(views: Mapping[Modality, MaskedViews]) -> dict[Modality, MaskedViews]:
    """The same views without any to predict."""
    return {modality: MaskedViews([], own.compared) for modality, own in views.items()}
