"""How long lists of names appear in error messages."""

from __future__ import annotations

from collections.abc import Sequence


def first_names(names: Sequence[str], at_most: int = 5) -> str:
    """``a, b, c and 7 more``."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
