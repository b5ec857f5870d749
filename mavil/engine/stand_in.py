"""Weights that are evaluated and exported in place of those that are trained, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mavil.engine.parallel import Parallel
from mavil.engine.wording import first_names
from mavil.structs import UserError


class StandIn:
    """A second set of the trained parameters: float32 like them, cut over ranks as they are, made of them as training goes on.

    Frozen parameters and buffers are not in it: they are those of the model. A kind of its own says what it takes in, after an
    update (:meth:`update`) or after a step (:meth:`take`).
    """

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self._is_in_place = False
        self._values: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in parallel.trained.items()
        }

    @property
    def is_there(self) -> bool:
        """Whether anything was taken in yet; until then the model's own weights are evaluated and exported."""
        return True

    def update(self, is_bad: Tensor | None = None) -> None:
        """After an update, before anything else changes the weights; where the 0-dim ``is_bad`` is 1 there was none."""

    def take(self, step: int) -> None:
        """After the step that makes ``step`` finished ones, one whose update was left out included."""

    def state(self) -> dict[str, Tensor]:
        """Collective. The model's complete state with these values, on rank 0; ``{}`` elsewhere and before there are any."""
        self._check_apart()
        return self._parallel.gather(self._parallel.model.state_dict() | self._values) if self.is_there else {}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], step: int = 0) -> None:
        """Go on with what :meth:`state` gave, under any kind of parallelism and world size; every rank passes it complete.

        ``step``: after which it was saved.

        Raises:
            UserError: a value of a trained parameter is missing or has another shape; nothing is changed then.
        """
        wrong = [name for name, own in self._values.items() if name not in state or state[name].shape != own.shape]
        if wrong:
            raise UserError(
                f"the moving average does not fit the model: {len(wrong)} missing or of another shape: {first_names(wrong)}. "
                "Continue with the recipe of the run it was saved by"
            )
        for name, value in self._values.items():
            self._parallel.own(value).copy_(self._parallel.part_of(state[name], value))

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """The model has these values inside and exactly its own weights again afterwards, also after an exception.

        Enter it before :meth:`Parallel.complete`. No update and no state inside.
        """
        self._check_apart()
        if self._parallel.is_complete:
            raise RuntimeError("the weights are gathered already and would not change: enter complete() inside")
        if not self.is_there:
            yield
            return
        self._swap()
        self._is_in_place = True
        try:
            yield
        finally:
            self._is_in_place = False
            self._swap()

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The plain tensors this rank holds of the values, and of the weights."""
        own = [self._parallel.own(value) for value in self._values.values()]
        return own, [self._parallel.own(parameter) for parameter in self._parallel.trained.values()]

    @torch.no_grad()
    def _swap(self) -> None:
        # Values change places, one tensor at a time, not the tensors themselves: optimizers and wrappers hold on to those.
        trained = self._parallel.trained
        for name, value in self._values.items():
            weights, value = self._parallel.own(trained[name]), self._parallel.own(value)
            before = weights.clone()
            weights.copy_(value)
            value.copy_(before)

    def _check_apart(self) -> None:
        if self._is_in_place:
            raise RuntimeError("the average is in place of the weights: leave in_place_of_weights() first")
