"""What goes over links and comes from storage, as tables."""

from __future__ import annotations

from dataclasses import replace

from tools.scaling.estimates import (
    GB,
    MB,
    PASSES_OVER_GRADIENTS,
    decode_cores,
    exposed_seconds,
    gather_seconds,
    num_collectives,
    ring_bytes,
    weights_seconds,
)
from tools.scaling.question import Question
from tools.scaling.tables import Table, short


def network_table(question: Question) -> Table:
    """What a step sends, how long that takes, and what of it the cards wait for."""
    work, inputs = question.works[0], question.inputs
    rows: list[tuple[str, ...]] = []
    for ranks in question.gpus:
        place = question.place(question.detail, ranks)
        node = replace(place, ranks=place.gpus_per_node)
        # Inside one node the network does not matter.
        speeds = question.networks if place.nodes > 1 else ()
        rest = ("-",) * (len(question.networks) - len(speeds))
        for kind, passes in PASSES_OVER_GRADIENTS.items():
            sent = ring_bytes(passes, ranks, work.gradient_bytes) / MB
            seconds = [weights_seconds(kind, work, node, inputs)]
            seconds += [weights_seconds(kind, work, place, inputs, speed) for speed in speeds]
            count = num_collectives(kind, work, inputs)
            times = (short(1000 * s) for s in seconds)
            rows.append((str(ranks), f"weights and gradients, {kind}", str(count), short(sent), *times, *rest))
        sent = ring_bytes(3.0, ranks, work.gathered_bytes(question.global_batch)) / MB
        seconds = [gather_seconds(work, replace(node, device_batch=question.global_batch / node.ranks), inputs)]
        seconds += [gather_seconds(work, place, inputs, speed) for speed in speeds]
        times = (short(1000 * s) for s in seconds)
        rows.append((str(ranks), "contrastive gathers", str(2 * work.gathered), short(sent), *times, *rest))
        fast, _ = question.steps_at(work, place)
        busy = max(fast.compute, fast.launch)
        exposed = [exposed_seconds(work, node, inputs, busy)[1]]
        exposed += [exposed_seconds(work, place, inputs, busy, speed)[1] for speed in speeds]
        shares = (f"{100 * e / (busy + e):.0f} %" for e in exposed)
        rows.append((str(ranks), "**share of the step that waits, ddp**", "", "", *shares, *rest))
    links = tuple(f"{speed:g} Gbit/s" for speed in question.networks)
    header = (
        "GPUs",
        "what",
        "collectives",
        "sent by each GPU, MB",
        "inside a node, ms",
        *(f"{link}, ms" for link in links),
    )
    return Table("network", f"Traffic of a step of {work.name} on {question.detail}", header, tuple(rows))


def shards_table(question: Question) -> Table:
    """What the cards would read and decode if nothing held them up."""
    work, data = question.works[0], question.inputs.loading
    rows: list[tuple[str, ...]] = []
    for place in question.places():
        fast, _ = question.steps_at(work, place)
        gb_s = fast.wanted * data.clip_mb * MB / GB
        rows.append(
            (
                place.card_name,
                str(place.ranks),
                short(fast.wanted),
                short(gb_s),
                short(gb_s / place.nodes),
                short(fast.wanted),
                short(fast.wanted / data.clips_per_shard),
                short(fast.wanted / place.ranks / data.core_clips),
                short(decode_cores(place)),
                str(work.recipe.data.num_workers),
            )
        )
    header: tuple[str, ...] = ("card", "GPUs", "clips/s", "GB/s", "GB/s per node", "reads/s", "shards/s")
    header += ("cores per GPU wanted", "there are", "workers of the recipe")
    return Table("shards", f"Shard traffic of {work.name}, optimistic", header, tuple(rows))
