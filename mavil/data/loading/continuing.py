"""The place of a loader in its data: what a batch carries of it, and how a loader goes on from there.

With the same readers (ranks x workers) and window the batches continue bit for bit. With others the clips of the epoch that
nobody has consumed are dealt anew, each still comes once; batches are then made of other clips.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mavil.data.loading.workers import Deliveries, WorkerPosition
from mavil.data.stream.position import Team, hand_over
from mavil.structs import UserError

logger = logging.getLogger(__name__)


def describe_place(deliveries: Deliveries, positions: Sequence[WorkerPosition], next_worker: int) -> dict[str, Any]:
    """Plain values from which :func:`go_on` continues after the batch at hand."""
    return {
        "order": _order(deliveries),
        "readers": _readers(deliveries),
        "history": [team.to_dict() for team in deliveries.history],
        "next_worker": next_worker,
        "workers": [
            {
                "epoch": position.epoch,
                "consumed": position.consumed,
                "num_reports": position.num_reports,
                "num_views": position.num_views,
                "under_way": list(position.under_way) if position.under_way else None,
            }
            for position in positions
        ],
    }


def go_on(places: Sequence[dict[str, Any]], deliveries: Deliveries) -> None:
    """Have ``deliveries`` begin after the last batches that all ranks have used; ``places`` has one per rank, in order.

    Raises:
        UserError: the places are not of all ranks, or belong to other data or another seed.
    """
    _check_order(places, deliveries)
    history = tuple(Team.from_dict(team) for team in places[0]["history"])
    readers = _readers(deliveries)
    own = places[deliveries.rank] if deliveries.rank < len(places) else None
    if own is not None and own["readers"] == readers:
        deliveries.history = history
        deliveries.positions = [_worker_position(worker) for worker in own["workers"]]
        deliveries.next_worker = own["next_worker"]
        return
    seen = [_worker_position(worker).seen for place in places for worker in place["workers"]]
    deliveries.history, epoch = hand_over(history, Team(places[0]["readers"]["shuffle_buffer"], tuple(seen)))
    then = places[0]["readers"]
    changed = [f"{name} was {then[name]}, is {value}" for name, value in readers.items() if then[name] != value]
    logger.warning(
        "the data go on with other readers (%s): what is left of epoch %d is dealt anew", "; ".join(changed), epoch
    )
    deliveries.positions = [WorkerPosition(epoch)] * len(deliveries.positions)
    deliveries.next_worker = 0


def _order(deliveries: Deliveries) -> dict[str, Any]:
    """What the clips of an epoch depend on: a place has no meaning where one of these differs."""
    draws = deliveries.draws
    return {
        "seed": deliveries.decoder.seed,
        "num_shards": len(deliveries.shards.index.shards),
        "shards": deliveries.shards.digest,
        # Draws come in another order from a remote place.
        "sampling": None if draws is None else f"{draws} {'local' if deliveries.shards.storage.is_local else 'remote'}",
    }


def _readers(deliveries: Deliveries) -> dict[str, int]:
    """What the batches depend on beside the order."""
    return {
        "world_size": deliveries.world_size,
        "rank": deliveries.rank,
        "num_workers": len(deliveries.positions),
        "shuffle_buffer": deliveries.shuffle_buffer,
        "batch_size": deliveries.batch_size,
        "views": deliveries.views,
    }


def _check_order(places: Sequence[dict[str, Any]], deliveries: Deliveries) -> None:
    readers = places[0].get("readers", {})
    if len(places) != readers.get("world_size"):
        raise UserError(
            f"the saved place in the data is of {len(places)} ranks, but was written by {readers.get('world_size')}: "
            "continue from a checkpoint that has all of them"
        )
    now, then = _order(deliveries), places[0]["order"]
    changed = [f"{name} was {then.get(name)}, is {value}" for name, value in now.items() if then.get(name) != value]
    if changed:
        raise UserError(
            f"the saved place in the data belongs to other data or another order ({'; '.join(changed)}): "
            "continue with the same shards, seed and data.sampling, or start a new run"
        )


def _worker_position(plain: dict[str, Any]) -> WorkerPosition:
    under_way = plain["under_way"]
    return WorkerPosition(**{**plain, "under_way": tuple(under_way) if under_way else None})
