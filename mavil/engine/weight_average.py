"""Averages of the weights, which are evaluated and exported in their place: a moving one, and the mean of the last ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mavil.engine.parallel import Parallel
from mavil.engine.stand_in import StandIn


class WeightAverage(StandIn):
    """``average += (1 - d) * (weights - average)`` after each update.

    ``d = min(decay, (1 + n) / (10 + n))`` after ``n`` updates: without this warm-up a run of a few thousand steps at decay
    0.9999 would end with an average that is mostly its random start [our choice; the form is TensorFlow's
    ``ExponentialMovingAverage``]. ``n`` is counted with the optimizer's steps, so an average goes on exactly after a resume.
    """

    def __init__(self, parallel: Parallel, decay: float) -> None:
        super().__init__(parallel)
        self._decay = decay

    @torch.no_grad()
    def update(self, is_bad: Tensor | None = None) -> None:
        """Take in the weights after an update; where the 0-dim ``is_bad`` is 1 there was none, and the average stays as it is."""
        self._check_apart()
        count = self._parallel.num_updates
        weight = 1.0 - torch.minimum(torch.full_like(count, self._decay), (1.0 + count) / (10.0 + count))
        if is_bad is not None:
            weight = weight * (1.0 - is_bad)
        own, weights = self._pairs()
        if own:
            torch._foreach_lerp_(own, weights, [weight] * len(own))


class MeanOfLast(StandIn):
    """The uniform mean of the weights after step ``num_steps`` and every ``every`` steps before it, in the last ``last`` steps.

    [source CAV-MAE: the mean of its last epochs' checkpoints.] Which steps these are follows from the numbers alone, so a run
    goes on exactly after a resume. An update that was left out changes nothing of that: the weights are then as before.
    """

    def __init__(self, parallel: Parallel, num_steps: int, last: int, every: int) -> None:
        super().__init__(parallel)
        self._num_steps = num_steps
        self._last = last
        self._every = every
        self._count = 0

    @property
    def is_there(self) -> bool:
        """From the first weights that it takes."""
        return self._count > 0

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Take in the weights after the step that makes ``step`` finished ones, where that is one of the steps."""
        self._check_apart()
        if not self._is_taken(step):
            return
        self._count += 1
        own, weights = self._pairs()
        if own and self._count == 1:
            torch._foreach_copy_(own, weights)
        elif own:
            torch._foreach_lerp_(own, weights, 1.0 / self._count)

    def load(self, state: Mapping[str, Tensor], step: int = 0) -> None:
        """As :meth:`StandIn.load`; it is the mean of what was to be taken in up to ``step``."""
        super().load(state, step)
        self._count = sum(self._is_taken(taken) for taken in range(step + 1))

    def _is_taken(self, step: int) -> bool:
        left = self._num_steps - step
        return 0 <= left < self._last and left % self._every == 0
