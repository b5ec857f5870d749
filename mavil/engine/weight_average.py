"""A moving average of the weights, which is evaluated and exported in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mavil.engine.parallel import Parallel
from mavil.engine.wording import first_names
from mavil.structs import UserError


class WeightAverage:
    """``average += (1 - d) * (weights - average)`` after each update, float32 like the weights, cut over ranks as they are.

    ``d = min(decay, (1 + n) / (10 + n))`` after ``n`` updates: without this warm-up a run of a few thousand steps at decay
    0.9999 would end with an average that is mostly its random start [our choice; the form is TensorFlow's
    ``ExponentialMovingAverage``]. ``n`` is counted with the optimizer's steps, so an average goes on exactly after a resume.
    Frozen parameters and buffers are not averaged: they are those of the model.
    """

    def __init__(self, parallel: Parallel, decay: float) -> None:
        self._parallel = parallel
        self._decay = decay
        self._is_in_place = False
        self._averages: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in parallel.trained.items()
        }

    @torch.no_grad()
    def update(self, is_bad: Tensor | None = None) -> None:
        """Take in the weights after an update; where the 0-dim ``is_bad`` is 1 there was none, and the average stays as it is."""
        self._check_apart()
        count = self._parallel.num_updates
        weight = 1.0 - torch.minimum(torch.full_like(count, self._decay), (1.0 + count) / (10.0 + count))
        if is_bad is not None:
            weight = weight * (1.0 - is_bad)
        own = [self._parallel.own(average) for average in self._averages.values()]
        if own:
            weights = [self._parallel.own(parameter) for parameter in self._parallel.trained.values()]
            torch._foreach_lerp_(own, weights, [weight] * len(own))

    def state(self) -> dict[str, Tensor]:
        """Collective. The model's complete state with averages in place of the weights, on rank 0; ``{}`` elsewhere."""
        self._check_apart()
        return self._parallel.gather(self._parallel.model.state_dict() | self._averages)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what :meth:`state` gave, under any kind of parallelism and world size; every rank passes it complete.

        Raises:
            UserError: an average of a trained parameter is missing or has another shape; nothing is changed then.
        """
        wrong = [name for name, own in self._averages.items() if name not in state or state[name].shape != own.shape]
        if wrong:
            raise UserError(
                f"the moving average does not fit the model: {len(wrong)} missing or of another shape: {first_names(wrong)}. "
                "Continue with the recipe of the run it was saved by"
            )
        for name, average in self._averages.items():
            self._parallel.own(average).copy_(self._parallel.part_of(state[name], average))

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """The model has the averages inside and exactly its own weights again afterwards, also after an exception.

        Enter it before :meth:`Parallel.complete`. No update and no state of the average inside.
        """
        self._check_apart()
        if self._parallel.is_complete:
            raise RuntimeError("the weights are gathered already and would not change: enter complete() inside")
        self._swap()
        self._is_in_place = True
        try:
            yield
        finally:
            self._is_in_place = False
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Values change places, one tensor at a time, not the tensors themselves: optimizers and wrappers hold on to those.
        trained = self._parallel.trained
        for name, average in self._averages.items():
            weights, average = self._parallel.own(trained[name]), self._parallel.own(average)
            before = weights.clone()
            weights.copy_(average)
            average.copy_(before)

    def _check_apart(self) -> None:
        if self._is_in_place:
            raise RuntimeError("the average is in place of the weights: leave in_place_of_weights() first")
