"""What the estimate was given: inputs, cards, measurements."""

from __future__ import annotations

from tools.scaling.inputs import Card
from tools.scaling.question import Question
from tools.scaling.tables import Table


def inputs_table(question: Question) -> Table:
    """Every input but the cards."""
    leaves = [leaf for leaf in question.inputs.leaves() if not leaf[0].startswith("cards.")]
    rows = tuple((name, f"{value:g}" if value < 1e5 else f"{value:,}", text) for name, value, text in leaves)
    return Table("inputs", "Inputs (change them with --set)", ("input", "value", "what, and where it comes from"), rows)


def cards_table(question: Question) -> Table:
    """The cards."""
    fields = list(Card.model_fields)
    rows = tuple(
        (f"cards.{name}", *(f"{getattr(card, field):g}" for field in fields))
        for name, card in question.inputs.cards.items()
    )
    return Table("cards", "Cards and their nodes (change them with --set)", ("card", *fields), rows)


def measured_table(question: Question) -> Table:
    """What the files say, beside the formulas."""
    rows: list[tuple[str, ...]] = []
    works = {work.name: work for work in question.works}
    for m in question.measurements:
        work, place = works[m.recipe], question.place(m.card, m.ranks, m.device_batch)
        formulas: dict[str, float] = {
            "parameters": work.trained,
            "gradient_bytes": work.gradient_bytes,
            "gathered_bytes": work.gathered_bytes(round(place.global_batch)) if m.ranks > 1 else 0,
            "checkpoint_bytes": work.checkpoint_bytes(work.recipe.trainer.has_average),
        }
        peak = m.device_batch * work.flops_per_clip / m.step_seconds / (place.card.peak_tflops * 1e12)
        rows.append((m.path.name, "step_seconds", f"{m.step_seconds:.4g}", f"{100 * peak:.1f} % of the peak"))
        for name, value in m.extras.items():
            rows.append((m.path.name, name, f"{value:,.4g}", f"{formulas[name]:,.4g}" if name in formulas else "-"))
    header = ("file", "what", "measured", "by formula")
    return Table("measured", "Measured, beside the formulas", header, tuple(rows))
