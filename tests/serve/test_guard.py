from __future__ import annotations

import pytest

from mavil.serve.guard import is_loopback, own_names, refusal
from mavil.serve.ranges import parse_range

NAMES = ["localhost"]


@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "localhost:8000"}, True),
        ({"host": "LOCALHOST"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "evil.example:8000"}, False),  # a name that its owner now points here
        ({"host": "localhost.evil.example"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "evil.example@127.0.0.1"}, False),
        ({"host": ""}, False),
        ({}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "none"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}, False),  # an image or a film of another page
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-site"}, False),  # another port of this machine
    ],
)
def test_only_the_own_page_and_programs_are_answered(headers: dict[str, str], is_answered: bool) -> None:
    assert (refusal(headers, "GET", "/media/1", NAMES) is None) == is_answered


def test_a_link_leads_to_the_page_and_no_further() -> None:
    headers = {"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert refusal(headers, "GET", "/", NAMES) is None
    assert refusal(headers, "GET", "/media/1", NAMES) is not None
    assert refusal(headers, "POST", "/", NAMES) is not None


def test_other_names_are_answered_only_where_others_are_let_in() -> None:
    assert own_names("127.0.0.1") == ["localhost"]
    assert own_names("::1") == ["localhost"]
    assert "gpu7" in own_names("gpu7")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert is_loopback("localhost")


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-", (2, 8)),
        ("bytes=2-5", (2, 4)),
        ("bytes=2-500", (2, 8)),
        ("bytes=-3", (7, 3)),
        ("bytes=-30", (0, 10)),
        ("bytes=5-2", None),
        ("bytes=0-1,4-5", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_ranges(header: str | None, part: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_ranges_behind_the_end(header: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the status says it
        parse_range(header, 10)
