"""What breaks first: for each limit, how much of what the cards want it gives."""

from __future__ import annotations

from collections.abc import Sequence

from tools.scaling.estimates import Place, Step, memory_gb
from tools.scaling.inputs import Inputs
from tools.scaling.tables import Table, short
from tools.scaling.work import Work


def room(work: Work, place: Place, step: Step, inputs: Inputs) -> dict[str, float]:
    """Factors by limit; below 1 the cards wait for it.

    ``launch``: the card's time of a step over the processor's to launch it. ``decode``, ``storage``: clips/s they give over
    those that the cards would take. ``network``: time behind which gradients can be averaged over the time that takes.
    ``memory``: the card's over what a rank needs.
    """
    shadow = inputs.links.hidden_share * work.backward_share * max(step.compute, step.launch)
    return {
        "launch": step.compute / step.launch,
        "decode": step.ceilings["decode"] / step.wanted,
        "storage": step.ceilings["storage"] / step.wanted,
        "network": shadow / step.gradients if step.gradients else float("inf"),
        "memory": place.card.memory_gb / memory_gb(work, place.device_batch),
    }


def limits_table(work: Work, inputs: Inputs, found: Sequence[tuple[Place, Step]]) -> Table:
    """One row per place, the tightest limit first."""
    rows = []
    for place, step in found:
        ordered = sorted(room(work, place, step, inputs).items(), key=lambda item: item[1])
        cells = [
            f"{'**' if factor < 1 else ''}{name} {short(factor)}{'**' if factor < 1 else ''}"
            for name, factor in ordered
        ]
        rows.append((place.card_name, str(place.ranks), f"{100 * step.busy_share:.0f} %", *cells))
    header = ("card", "GPUs", "cards compute", "first", "second", "third", "fourth", "fifth")
    return Table("limits", f"What breaks first: {work.name}, optimistic", header, tuple(rows))
