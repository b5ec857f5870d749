"""The decoders in turn."""

from __future__ import annotations

import pytest

from mavil.data import media as room
from mavil.structs import UserError


@pytest.fixture(params=list(room.BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    """Each decoder in turn, those that cannot be loaded here skipped with their reason."""
    try:
        room._backend(request.param)
    except UserError as error:
        pytest.skip(str(error))
    return str(request.param)
