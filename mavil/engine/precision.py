"""In which number format a step computes, and the factor that keeps fp16 gradients from vanishing."""

from __future__ import annotations

from typing import Literal

import torch

from mavil.structs import UserError

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_FACTOR, SMALLEST_FACTOR = 2.0**16, 1.0
GROWTH, BACK_OFF = 2.0, 0.5
GROWTH_STEPS = 2000
"""Good steps in a row before the factor grows. These four are the defaults of :class:`torch.amp.GradScaler`, except that
nothing there stops the factor from falling below 1."""


def choose_precision(setting: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """``auto`` is bf16 on CUDA devices that compute in it and fp32 elsewhere; the others only when asked for.

    fp16 is never chosen by itself: it is faster than fp32 on cards without bf16, but can overflow.

    Raises:
        UserError: bf16 was asked for and the device cannot.
    """
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "auto":
        return "bf16" if device.type == "cuda" and has_bf16 else "fp32"
    if setting == "bf16" and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"trainer.precision is bf16, but {name} does not compute in it: set trainer.precision=fp16 (scaled) or =fp32"
        )
    return setting


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Around a forward pass and its loss, never around a backward pass. Weights stay float32; fp32 changes nothing."""
    if precision == "fp32":
        # Not its own dtype: autocast to float32 does not exist.
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=_DTYPES[precision])


class LossScale:
    """What an fp16 loss is multiplied by before the backward pass, and its gradients divided by afterwards.

    Small gradients vanish in fp16 (below 6e-8) unless they are scaled up; a factor that is too large makes them overflow. So
    it halves when they did, and the update is left out; after :data:`GROWTH_STEPS` good steps it doubles. It follows from the
    verdicts alone: as all ranks are given the same ones, all have the same factor, and nothing is exchanged.

    A loss that is itself not finite was never scaled: no smaller factor would help it.

    Attributes:
        factor: 1 where the precision needs none.
        is_adaptive: whether it changes; only in fp16.
    """

    def __init__(self, precision: Precision) -> None:
        self.is_adaptive = precision == "fp16"
        self.factor = FIRST_FACTOR if self.is_adaptive else 1.0
        self._good_steps = 0

    @property
    def can_back_off(self) -> bool:
        """Whether a smaller factor is left to try; without one a gradient that is not finite is an error."""
        return self.is_adaptive and self.factor > SMALLEST_FACTOR

    def after_step(self, all_finite: bool) -> None:
        """Adapt to the ranks' common verdict on a step's gradient.

        Raises:
            ValueError: it was not finite and the factor cannot fall any more: the update should have been refused.
        """
        if all_finite:
            self._good_steps += 1
            if self.is_adaptive and self._good_steps >= GROWTH_STEPS:
                self.factor *= GROWTH
                self._good_steps = 0
            return
        if not self.can_back_off:
            raise ValueError(f"the loss scale is {self.factor:g} and cannot fall: refuse the update instead")
        self.factor = max(self.factor * BACK_OFF, SMALLEST_FACTOR)
        self._good_steps = 0

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"factor": self.factor, "good_steps": float(self._good_steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where :meth:`state_dict` was taken; in a precision that needs no factor it changes nothing."""
        if self.is_adaptive:
            self.factor, self._good_steps = float(state["factor"]), int(state["good_steps"])
