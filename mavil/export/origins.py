"""What a model began with, and which licence that leaves for its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NON_COMMERCIAL = "cc-by-nc-4.0"
LICENCES: dict[str, tuple[str, str]] = {
    "image_mae": (NON_COMMERCIAL, "MAE's checkpoints are CC-BY-NC 4.0; a plain ViT of the same names may be free"),
    "audio_mae": (NON_COMMERCIAL, "CC-BY-NC 4.0 by Audio-MAE's LICENSE file; its README says CC-BY 4.0"),
    "mae_st": (NON_COMMERCIAL, "CC-BY-NC 4.0"),
    "video_mae": (NON_COMMERCIAL, "CC-BY-NC 4.0 for VideoMAE; VideoMAE v2 is MIT"),
    "mavil": (NON_COMMERCIAL, "CC-BY-NC 4.0"),
    "msm_mae": ("other", "NTT's licence for evaluation, not commercial"),
    "m2d": ("other", "NTT's licence for evaluation, not commercial"),
    "cav_mae": ("bsd-2-clause", "BSD-2"),
}
"""Layout of a public checkpoint -> licence by the Hub's name for it, and what is known [source: the projects' repositories].

A layout tells whose code made a file, not who trained it, so the strictest reading is taken. MAE-AST is not here: its
repository has no licence, so it counts as unknown."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licence:
    """For the card.

    Attributes:
        name: as the Hub writes it, e.g. ``cc-by-nc-4.0``; ``unknown``; ``None`` where its owner has named none.
        reasons: sentences for people, one per start that matters.
    """

    name: str | None
    reasons: tuple[str, ...]


def licence_of(starts: Sequence[Mapping[str, Any]] | None, own: str | None) -> Licence:
    """The licence of weights that began with ``starts``.

    Of several the strictest counts: non-commercial before NTT's before an unknown one before a free one. A name of one's own
    is written as it is given, and the reasons stay beside it.

    Args:
        starts: see :mod:`mavil.export.card`; ``None`` where nothing is known.
        own: what the owner chose (``mavil export --licence``).
    """
    if starts is None:
        return Licence(own or UNKNOWN, ("What these weights began with is not recorded.",))
    found: list[str] = []
    reasons: list[str] = []
    for start in starts:
        name = str(start.get("name", "a file"))
        if start.get("kind") == "run":
            if not start.get("found", False):
                found.append(UNKNOWN)
                reasons.append(f"It began with the run {name}, which was not there to look at.")
            continue
        licence, why = LICENCES.get(str(start.get("layout")), (UNKNOWN, "its licence is not known here"))
        found.append(licence)
        reasons.append(f"It began with {name} (layout {start.get('layout') or 'not known'}): {why}.")
    order = (NON_COMMERCIAL, "other", UNKNOWN, "bsd-2-clause")
    strictest = min(found, key=order.index) if found else None
    if not reasons:
        reasons.append("It began with random weights.")
    if own is None and strictest is None:
        reasons.append("Who trained it has named no licence.")
    return Licence(own or strictest, tuple(reasons))
