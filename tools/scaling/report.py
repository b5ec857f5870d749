"""Time, cost and limits as tables, and the list of all tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tools.scaling.estimates import implied_utilisation, memory_gb
from tools.scaling.limits import limits_table
from tools.scaling.listing import cards_table, inputs_table, measured_table
from tools.scaling.question import Question
from tools.scaling.tables import Table, short, span
from tools.scaling.traffic import network_table, shards_table
from tools.scaling.upkeep import checkpoint_table, preemption_table

HOUR = 3600.0


def tables_of(question: Question) -> list[Table]:
    """All tables, in the order in which they are read."""
    makers: list[Callable[[Question], Table]] = [
        work_table,
        anchor_table,
        time_table,
        limits_of,
        batch_table,
        network_table,
        shards_table,
        checkpoint_table,
        preemption_table,
        inputs_table,
        cards_table,
    ]
    if question.measurements:
        makers.append(measured_table)
    return [make(question) for make in makers]


def work_table(question: Question) -> Table:
    """What a clip and the whole schedule take."""
    rows: list[tuple[str, ...]] = []
    for work in question.works:
        samples = work.samples(question.inputs.loading.clips, question.global_batch)
        rows.append(
            (
                work.name,
                f"{work.trained / 1e6:.1f} M",
                f"{work.forward / 1e9:.1f} G",
                f"{work.teacher / 1e9:.1f} G",
                f"{work.flops_per_clip / 1e12:.2f}",
                f"{samples / 1e6:.1f} M",
                f"{work.flops_per_clip * samples / 1e18:.1f}",
            )
        )
    header = ("recipe", "parameters", "forward, multiply-adds", "teacher", "TFLOP per clip", "clips", "EFLOP in all")
    return Table("work", "Work of a clip and of the whole schedule", header, tuple(rows))


def anchor_table(question: Question) -> Table:
    """What the published cost would mean, beside what is assumed here."""
    inputs = question.inputs
    rows: list[tuple[str, ...]] = []
    published = implied_utilisation(question.works, inputs, inputs.cards["V100"])
    shares = (published, inputs.compute.utilisation_low, inputs.compute.utilisation_high)
    clips = sum(w.samples(inputs.loading.clips, question.global_batch) for w in question.works)
    for name, card in inputs.cards.items():
        flops = implied_utilisation(question.works, inputs, card) * inputs.compute.anchor_gpu_hours
        hours = [flops / share for share in shares]
        rows.append((name, *(f"{short(h)} ({short(clips / h / HOUR)})" for h in hours)))
    names = ("as published", "pessimistic", "optimistic")
    columns = (f"{name}: {100 * share:.1f} % of the peak" for name, share in zip(names, shares, strict=True))
    header = ("card", *columns)
    return Table("anchor", "GPU-hours of all recipes (clips/s per GPU), computing alone", header, tuple(rows))


def time_table(question: Question) -> Table:
    """Hours and GPU-hours at the recipe's global batch."""
    rows: list[tuple[str, ...]] = []
    for place in question.places():
        times = [question.seconds(work, place) for work in question.works]
        fast, slow = question.steps_at(question.works[0], place)
        hours = [sum(time[end] for time in times) * place.ranks / HOUR for end in (0, 1)]
        cost = () if question.price is None else (span(hours[0] * question.price, hours[1] * question.price),)
        rows.append(
            (
                place.card_name,
                str(place.ranks),
                f"{place.device_batch:g}",
                span(1000 * fast.device_seconds, 1000 * slow.device_seconds),
                *(span(first / HOUR, last / HOUR) for first, last in times),
                span(*hours),
                *cost,
                fast.limit if fast.limit == slow.limit else f"{fast.limit} / {slow.limit}",
                "assumed, not measured" if fast.source == "assumed" else fast.source,
            )
        )
    days = tuple(f"{work.name}, h" for work in question.works)
    price = () if question.price is None else (f"cost at {question.price:g} per GPU-hour",)
    first = question.works[0].name
    header = (
        "card",
        "GPUs",
        "device batch",
        f"step of {first}, ms",
        *days,
        "GPU-hours, all",
        *price,
        "limit",
        "step time",
    )
    title = f"Time at global batch {question.global_batch}, optimistic - pessimistic"
    return Table("time", title, header, tuple(rows))


def limits_of(question: Question) -> Table:
    """What breaks first; see :mod:`tools.scaling.limits`."""
    work = question.works[0]
    found = [(place, question.steps_at(work, place)[0]) for place in question.places()]
    return limits_table(work, question.inputs, found)


def batch_table(question: Question) -> Table:
    """The same run with a global batch that stays, and with one that grows with the cards."""
    work, rows = question.works[0], []
    own = work.recipe.trainer.device_batch
    for ranks in question.gpus:
        for device_batch in dict.fromkeys((question.global_batch / ranks, float(own))):
            place = question.place(question.detail, ranks, device_batch)
            batch = round(place.global_batch)
            fast, slow = question.steps_at(work, place)
            seconds = question.seconds(work, place)
            rows.append(
                (
                    str(ranks),
                    f"{device_batch:g}",
                    f"{batch:,} (x {batch / question.global_batch:g})",
                    f"{work.samples(question.inputs.loading.clips, batch) // batch:,}",
                    f"{work.base_lr * batch / 256:.1e}",
                    f"{memory_gb(work, device_batch):.0f}",
                    span(1000 * fast.device_seconds, 1000 * slow.device_seconds),
                    span(*(s / HOUR for s in seconds)),
                    span(*(s * ranks / HOUR for s in seconds)),
                )
            )
    header = (
        "GPUs",
        "device batch",
        "global batch",
        "steps",
        "peak rate",
        "GB per GPU",
        "step, ms",
        "hours",
        "GPU-hours",
    )
    return Table("batch", f"{work.name} on {question.detail}: batch kept or growing", header, tuple(rows))


def assumptions_of(question: Question) -> Sequence[str]:
    """Sentences that stand under the tables."""
    compute = question.inputs.compute
    named = {(m.recipe, m.card) for m in question.measurements}
    lacking = [
        f"{work.name} on {card}"
        for work in question.works
        for card in question.inputs.cards
        if (work.name, card) not in named
    ]
    sentences = []
    if lacking:
        low, high = 100 * compute.utilisation_low, 100 * compute.utilisation_high
        sentences.append(
            f"Assumed, not measured ({', '.join(lacking)}): {low:g} to {high:g} % of the card's peak. "
            "Measure yours with tools/benchmark.py training and give the file with --measured."
        )
    return sentences
