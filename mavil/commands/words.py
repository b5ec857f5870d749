"""Words of a command line that several verbs read alike: DATA beside settings, and names between commas."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mavil.structs import UserError

_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
"""How KEY=VALUE begins; an address or a path that holds ``=`` has other characters before it."""


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """What is meant by DATA, if anything, and the settings.

    Raises:
        UserError: there are two of DATA.
    """
    changes = [word for word in words if _SETTING.match(word)]
    places = [word for word in words if not _SETTING.match(word)]
    if len(places) > 1:
        raise UserError(f"{' '.join(places)}: name one place with data; settings are KEY=VALUE")
    return (places[0] if places else None), changes


def names_in(text: str | None) -> list[str]:
    """``"a,b"`` to ``["a", "b"]``."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
