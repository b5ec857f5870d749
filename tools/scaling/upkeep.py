"""What checkpoints and preemption cost, as tables."""

from __future__ import annotations

from tools.scaling.estimates import GB, preempted_efficiency
from tools.scaling.question import Question
from tools.scaling.tables import Table, short

PREEMPTED_EVERY = (1.0, 24.0)
"""Hours, beside the input."""


def checkpoint_table(question: Question) -> Table:
    """Sizes and times of checkpoints."""
    work, inputs, rows = question.works[0], question.inputs, []
    per_day = 24 * 60 / inputs.preemption.interval_minutes
    for name, has_average in (("weights and two moments", False), ("with the average of the weights", True)):
        size = work.checkpoint_bytes(has_average)
        blocked = size / (inputs.storage.host_copy_gb_s * GB)
        share = blocked / (60 * inputs.preemption.interval_minutes)
        rows.append(
            (
                name,
                f"{size / work.trained:.0f}",
                f"{size / GB:.2f}",
                short(blocked),
                f"{100 * share:.3f} %",
                short(size / (inputs.storage.write_gb_s * GB)),
                short(per_day),
                short(per_day * size / GB),
            )
        )
    header = (
        "checkpoint",
        "bytes per parameter",
        "GB",
        "training waits, s",
        "share",
        "written in, s",
        "per day",
        "GB per day",
    )
    return Table("checkpoints", f"Checkpoints of {work.name}", header, tuple(rows))


def preemption_table(question: Question) -> Table:
    """What is left of the time when cards are taken away."""
    inputs = question.inputs
    rows: list[tuple[str, ...]] = []
    every = sorted({*PREEMPTED_EVERY, inputs.preemption.every_hours})
    for hours in every:
        left = [preempted_efficiency(inputs, hours, has_warning) for has_warning in (True, False)]
        lost = [60 * hours * (1 - share) for share in left]
        rows.append((f"{hours:g} h", *(f"{short(m)} min, {100 * s:.1f} %" for m, s in zip(lost, left, strict=True))))
    header = ("preempted every", "with a signal: lost, efficiency", "without: lost, efficiency")
    return Table("preemption", "What preemption costs", header, tuple(rows))
