"""What is to be estimated, and the estimates that several tables share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mavil.config import Recipe
from tools.scaling.estimates import Place, Step, estimate_step
from tools.scaling.inputs import Inputs
from tools.scaling.measured import Measurement
from tools.scaling.work import Work, work_of


@dataclass(frozen=True)
class Question:
    """What is to be estimated.

    Attributes:
        recipes: in the order of the stages.
        gpus: numbers of cards.
        detail: the card of the tables that show one.
        networks: speeds between nodes, Gbit/s.
        price: of a GPU-hour, in any currency; ``None``: no cost.
    """

    recipes: tuple[Recipe, ...]
    inputs: Inputs
    gpus: tuple[int, ...]
    detail: str
    networks: tuple[float, ...]
    measurements: tuple[Measurement, ...] = ()
    price: float | None = None

    @cached_property
    def works(self) -> tuple[Work, ...]:
        """One per recipe; counting takes seconds."""
        return tuple(work_of(recipe) for recipe in self.recipes)

    @property
    def global_batch(self) -> int:
        """Clips per step: the first recipe's, or the paper's."""
        return self.recipes[0].trainer.global_batch or self.inputs.compute.global_batch

    def place(self, card: str, ranks: int, device_batch: float | None = None) -> Place:
        """So many cards, with their part of the global batch unless told otherwise."""
        batch = self.global_batch / ranks if device_batch is None else device_batch
        return Place(card, self.inputs.cards[card], ranks, batch)

    def places(self) -> list[Place]:
        """Every card in every number, at the global batch of the recipe."""
        return [self.place(card, ranks) for card in self.inputs.cards for ranks in self.gpus]

    def steps_at(self, work: Work, place: Place) -> tuple[Step, Step]:
        """Optimistic, pessimistic."""
        compute = self.inputs.compute
        fast, slow = (
            estimate_step(work, place, self.inputs, utilisation, self.measurements)
            for utilisation in (compute.utilisation_high, compute.utilisation_low)
        )
        return fast, slow

    def seconds(self, work: Work, place: Place) -> tuple[float, float]:
        """Of the whole schedule, optimistic and pessimistic."""
        samples = work.samples(self.inputs.loading.clips, round(place.global_batch))
        fast, slow = self.steps_at(work, place)
        return samples / fast.clips_per_second, samples / slow.clips_per_second
