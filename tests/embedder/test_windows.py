"""Windows of clips, written out."""

from __future__ import annotations

import pytest

from mavil.embedder.windows import Span, places_within, spans_of
from mavil.structs import UserError


@pytest.mark.parametrize(
    ("duration", "length", "hop", "starts"),
    [
        (10.0, 10.0, None, [0.0]),
        (3.0, 10.0, None, [0.0]),
        (0.0, 10.0, None, [0.0]),
        (10.4, 10.0, None, [0.2]),  # less than a twentieth longer: in the middle, as evaluation takes it
        (10.6, 10.0, None, [0.0, 0.6]),
        (20.0, 10.0, None, [0.0, 10.0]),
        (20.3, 10.0, None, [0.0, 10.3]),
        (25.0, 10.0, None, [0.0, 10.0, 15.0]),
        (12.0, 10.0, 0.5, [0.0, 0.5, 1.0, 1.5, 2.0]),
        (12.1, 10.0, 0.5, [0.0, 0.5, 1.0, 1.5, 2.0, 2.1]),
        (30.0, 4.0, 10.0, [0.0, 10.0, 20.0, 26.0]),
    ],
)
def test_windows_begin_where_they_should(
    duration: float, length: float, hop: float | None, starts: list[float]
) -> None:
    spans = spans_of(duration, length, hop, "clip")
    assert [span.start for span in spans] == pytest.approx(starts)
    assert [span.end for span in spans] == pytest.approx([min(start + length, duration) for start in starts])


def test_an_impossible_step_is_told() -> None:
    for hop in (0, -1.0, float("nan"), float("inf"), True, "1"):
        with pytest.raises(UserError, match="hop_seconds="):
            spans_of(10.0, 1.0, hop, "clip")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"clip: 36000 s in steps of 0\.1 s are 3599\d\d windows, more than 100000"):
        spans_of(36_000.0, 10.0, 0.1, "clip")


def test_the_shorter_input_lies_in_the_middle() -> None:
    assert places_within(Span(20.0, 30.0), {"audio": 10.0, "video": 4.0}) == {"audio": 20.0, "video": 23.0}
    assert places_within(Span(0.0, 6.0), {"audio": 10.0, "video": 4.0}) == {"audio": 0.0, "video": 1.0}
    assert places_within(Span(0.0, 4.0), {"video": 4.0}) == {"video": 0.0}
