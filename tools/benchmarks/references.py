"""What the public codes needed for forward and backward passes, measured by running them: the figures to be beaten."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_RATE = 1.78e11
"""Floating-point operations per second that the machine of :data:`REFERENCES` gave at least: MSM-MAE's 14.3 G multiply-adds of
a clip's pass (``mavil inspect``), times 2 and 8 clips, in 1.28 s; the others come to 1.43e11 and more. Its notes name 46 GFLOP/s
for a matrix product, with which none of these times would be possible: the machine was shared. If it gave more than this, the
public code would take longer here than the scaled figure says, so that the figure is hard on us, not on the public code."""


@dataclass(frozen=True)
class Reference:
    """The public code of one system on a 2-core x86 CPU, float32, no optimizer: medians of 5 steps after one.

    Attributes:
        batch: clips.
        seconds: of a forward and backward pass, by the clock; the machine was shared, so an upper bound.
        cpu_seconds: of both cores together; steadier.
        peak_bytes: most resident memory of the process. Megabytes are read as 10^6 bytes, the reading that is harder on us.
        imports_bytes: of it, what was there when the code was imported; noted for Audio-MAE, taken for all. It says which build
            of torch was installed, so that models are compared by the rest.
    """

    batch: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    imports_bytes: int = 229_000_000

    @property
    def working_bytes(self) -> int:
        """What weights, gradients and activations took at most."""
        return self.peak_bytes - self.imports_bytes


_WINDOWED = Reference(4, 4.80, 9.2, 3_252_000_000)
REFERENCES = {
    "audio_mae": _WINDOWED,
    "audio_mae_compat": _WINDOWED,
    "audio_mae_global": Reference(4, 4.05, 8.0, 2_525_000_000),
    "mae_ast_patch": Reference(4, 2.66, 5.18, 2_240_000_000),
    "mae_ast_frame": Reference(4, 2.82, 5.28, 2_270_000_000),
    "msm_mae": Reference(8, 0.62, 1.22, 1_320_000_000),
    "msm_mae_512": Reference(8, 1.28, 2.54, 1_500_000_000),
}
"""By name of the recipe of ours that computes the same: encoder, decoder, tokens and mask ratio agree. Which axes windows are
moved along, or how masks are drawn, costs nothing that can be measured."""
