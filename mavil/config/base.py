"""What every group of settings is made of: strict frozen models, shares and lengths of training."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from mavil.structs import Modality


class Settings(BaseModel):
    """A frozen group of settings that accepts no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_not_truth_values(cls, values: Any) -> Any:
        """YAML reads ``on`` as true, and Python counts with it; nobody who wrote ``seed: on`` meant 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if (
                isinstance(value, bool)
                and name in cls.model_fields
                and cls.model_fields[name].annotation in (int, float)
            ):
                raise ValueError(f"{name} is {str(value).lower()}, but must be a number")
        return values


def increasing(pair: tuple[float, float]) -> tuple[float, float]:
    """A validator: smallest first."""
    if pair[0] > pair[1]:
        raise ValueError(f"the first of {list(pair)} is larger than the second: give the smallest, then the largest")
    return pair


def each_once(modalities: tuple[Modality, ...]) -> tuple[Modality, ...]:
    """A validator: no modality twice."""
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"{list(modalities)} names one modality twice")
    return modalities


Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Duration(Settings):
    """A length of training: ``20 epochs``, ``300 steps`` or ``0 steps``. One place turns it into optimizer steps."""

    count: float = Field(ge=0)
    unit: Literal["steps", "epochs"]

    def steps(self, samples_per_epoch: int, global_batch: int) -> int:
        """Optimizer steps, rounded down; an epoch is ``samples_per_epoch`` samples."""
        if self.unit == "steps":
            return int(self.count)
        return int(self.count * samples_per_epoch / global_batch + 1e-9)  # 0.29 x 100 is 28.999...

    def __str__(self) -> str:
        count = int(self.count) if self.count == int(self.count) else self.count
        return f"{count} {self.unit}"


def _parse_duration(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(steps?|epochs?)\s*", value)
        if match:
            return {"count": float(match[1]), "unit": match[2].rstrip("s") + "s"}
        raise ValueError(f"{value!r} is not a length of training: write e.g. '20 epochs' or '300 steps'")
    if isinstance(value, (int, float)):
        raise ValueError(f"{value!r} needs a unit: write '{value} steps' or '{value} epochs'")
    return value


Length = Annotated[Duration, BeforeValidator(_parse_duration), PlainSerializer(str)]
