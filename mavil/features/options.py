"""What can be chosen about features, and how it is written behind a checkpoint's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from mavil.structs import SAMPLE_RATE, UserError

SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100, 48_000)
"""Hz: those that HEAR allows [source hear-validator]."""
_CHOICES = {"bands": ("joined", "mean"), "chunks": ("exact", "padded"), "timestamps": ("centred", "from_zero")}


@dataclass(frozen=True)
class FeatureOptions:
    """Choices about features.

    Attributes:
        layers: ``last``: what leaves the last block, through the norm that stands behind it in pre-training; a number: what
            leaves that block as it is, 0 is what enters the first; ``mean3``: the mean of the last three blocks, each through
            that norm, as AudioLDM 2 takes Audio-MAE's [third-party].
        bands: the tokens of a time step side by side, 5 x 768 = 3840 values [source MSM-MAE], or their mean [source M2D].
        chunks: sound longer than one input of the encoder is cut into inputs, the last as short as it is and with the position
            codes of its own length; or ``padded``: it is filled up with zeros after normalising, and there is one more input
            where the length is an exact multiple [source MSM-MAE's wrapper].
        timestamps: the middle of what a feature stands for, or ``from_zero``: equal parts of the duration, each called by its
            beginning [source MSM-MAE's wrapper].
        sample_rate: Hz of the waveforms that come in; they are resampled to 16 kHz.
        checkpoint: of a run: newest, best or a step.
    """

    layers: str = "last"
    bands: Literal["joined", "mean"] = "joined"
    chunks: Literal["exact", "padded"] = "exact"
    timestamps: Literal["centred", "from_zero"] = "centred"
    sample_rate: int = SAMPLE_RATE
    checkpoint: str = "newest"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)}: choose {' or '.join(choices)}")
        if self.sample_rate not in SAMPLE_RATES:
            raise UserError(f"sample_rate={self.sample_rate}: choose one of {', '.join(map(str, SAMPLE_RATES))} (Hz)")
        if not re.fullmatch(r"last|\d+|mean[1-9]\d*", self.layers):
            raise UserError(f"layers={self.layers}: write last, the number of a block, or e.g. mean3")

    @classmethod
    def of(cls, values: Mapping[str, str]) -> FeatureOptions:
        """From text, as it stands behind a checkpoint's name.

        Raises:
            UserError: an unknown name or value.
        """
        names = list(cls.__dataclass_fields__)
        for name, value in values.items():
            if name not in names:
                raise UserError(f"{name}={value}: no such option of features; there are {', '.join(names)}")
        rate = values.get("sample_rate", str(SAMPLE_RATE))
        if not rate.isdecimal():
            raise UserError(f"sample_rate={rate}: choose one of {', '.join(map(str, SAMPLE_RATES))} (Hz)")
        return cls(**cast(dict[str, str], {**values, "sample_rate": int(rate)}))  # type: ignore[arg-type]


def split_source(source: str) -> tuple[str, FeatureOptions, list[str]]:
    """``PATH?layers=mean3&audio.num_steps=512`` to the path, the options, and the settings to change in the recipe.

    A name with a dot is a recipe's setting, any other an option of :class:`FeatureOptions`.

    Raises:
        UserError: something that is not NAME=VALUE, or no such option.
    """
    path, _, query = source.partition("?")
    options: dict[str, str] = {}
    changes: list[str] = []
    for part in filter(None, query.split("&")):
        name, separator, value = part.partition("=")
        if not separator or not value:
            raise UserError(f"{source}: {part!r} behind the question mark is not NAME=VALUE")
        if "." in name:
            changes.append(part)
        else:
            options[name] = value
    return path, FeatureOptions.of(options), changes
