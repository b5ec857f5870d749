"""A server in a process of its own, as somebody would start it, and what the world throws at it."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.server import MOST_REQUESTS, Server, running
from tests.support.processes import wait_for, wait_until
from tests.support.stored_embeddings import searchable


def test_a_clip_comes_back_and_its_media_can_be_fetched(server: Server) -> None:
    file = searchable().files[2]
    content = file.read_bytes()
    answered = server.search(content, by="audio", find="audio", top=2, name="my.mp4").raise_for_status().json()
    assert answered["query"] == "my.mp4"
    first, second = answered["answers"][0]["matches"]
    assert (first["key"], first["has_picture"]) == (file.stem, True)
    assert first["score"] > 0.999 > second["score"]
    address = f"/media/{first['clip']}"
    whole = server.client.get(address)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "video/mp4")
    part = server.client.get(address, headers={"Range": "bytes=100-299"})
    assert (part.status_code, part.content) == (206, content[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{len(content)}"
    assert server.client.get(address, headers={"Range": "bytes=-7"}).content == content[-7:]
    behind = server.client.get(address, headers={"Range": f"bytes={len(content)}-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{len(content)}")
    head = server.client.head(address)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))


def test_nothing_but_clips_of_the_index_is_sent(server: Server) -> None:
    paths = (
        "4",
        "-1",
        "9" * 30,
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "0/../../about.json",
    )
    for path in (*(f"/media/{path}" for path in paths), "/etc/passwd", "/docs", "/openapi.json"):
        answer = server.client.get(path)
        assert answer.status_code in (404, 422), path
        assert answer.json()["error"]
        assert "root:" not in answer.text


def test_refusals_are_one_sentence(server: Server) -> None:
    content = searchable().files[0].read_bytes()
    too_large = server.search(bytes(1_000_001))
    assert (too_large.status_code, too_large.json()["error"][:32]) == (413, "the file is larger than 1 MB: cu")
    assert server.search(b"").status_code == 400
    assert "cannot be decoded" in server.search(b"plain text " * 99).json()["error"]
    assert server.search(content, by="smell").status_code == 422
    assert server.search(content, top=0).status_code == 422
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        refused = server.client.post("/search", content=content, headers=headers)
        assert refused.status_code == 403, headers
    assert server.held() == []


def test_no_answer_lets_a_script_of_somebody_else_run(server: Server) -> None:
    page = server.client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "//" not in page.text.replace("http://www.w3.org", "").split("<body>")[1].split("<script>")[0]


def broken(content: bytes, number: int) -> bytes:
    """One of many ways in which a file can be damaged."""
    dice = random.Random(number)
    kind = number % 5
    if kind == 0:
        return content[: dice.randrange(len(content))]
    if kind == 1:
        return dice.randbytes(dice.randrange(1, 5000))
    damaged = bytearray(content)
    if kind == 2:  # anywhere
        for _ in range(dice.randrange(1, 200)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
    elif kind == 3:  # in the header and the tables
        for _ in range(dice.randrange(1, 20)):
            damaged[dice.randrange(min(200, len(damaged)))] = dice.randrange(256)
    else:
        begin = dice.randrange(len(damaged))
        damaged[begin : begin + dice.randrange(2000)] = b""
    return bytes(damaged)


def survives(server: Server, num_uploads: int) -> None:
    content = searchable().files[1].read_bytes()
    server.search(content).raise_for_status()
    before = server.megabytes()
    seen: Counter[int] = Counter()
    for number in range(num_uploads):
        answer = server.search(broken(content, number), top=3)
        seen[answer.status_code] += 1
        assert answer.status_code == 200 or answer.json()["error"]
    assert set(seen) <= {200, 400}, seen
    assert seen[400] > num_uploads / 3
    assert server.search(content, by="audio", find="audio").json()["answers"][0]["matches"][0]["score"] > 0.999
    assert server.held() == []
    assert "Traceback" not in server.log.read_text()
    assert server.megabytes() < before + 150


def test_a_hundred_broken_uploads(server: Server) -> None:
    survives(server, 100)


@pytest.mark.slow  # a minute
def test_a_thousand_broken_uploads(server: Server) -> None:
    survives(server, 1000)


def test_fifty_uploads_at_once(server: Server) -> None:
    """So many as are let in are answered, the others are told at once to come again; memory is that of one after another."""
    content = searchable().files[3].read_bytes()
    content += bytes(900_000 - len(content))  # nothing that counts, but bytes to hold
    server.search(content).raise_for_status()
    before, most = server.megabytes(), 0.0
    with ThreadPoolExecutor(50) as threads:
        answers = [threads.submit(server.search, content) for _ in range(50)]
        while not all(answer.done() for answer in answers):
            most = max(most, server.megabytes())
            assert len(server.held()) <= MOST_REQUESTS
    seen = Counter(answer.result().status_code for answer in answers)
    assert set(seen) == {200, 503}, seen
    assert seen[200] >= MOST_REQUESTS
    busy = next(answer.result() for answer in answers if answer.result().status_code == 503)
    assert busy.json()["error"] == f"{MOST_REQUESTS} searches are under way: try again in a moment"
    assert busy.headers["retry-after"] == "2"
    assert most < before + 150
    server.search(content).raise_for_status()
    assert server.held() == []


def test_somebody_who_goes_away_frees_the_place(server: Server) -> None:
    def give_up() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.address}/search", content=searchable().files[0].read_bytes(), timeout=0.001, trust_env=False
            )

    for _ in range(2 * MOST_REQUESTS):
        give_up()
    content = searchable().files[0].read_bytes()
    assert wait_until(lambda: True if server.search(content).status_code == 200 else None, 30)
    assert wait_until(lambda: True if server.held() == [] else None, 30)


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    with running(searchable().index, tmp_path) as server:
        file = searchable().files[0]
        assert server.search(file.read_bytes()).status_code == 200
        assert server.client.get("/media/0").content == file.read_bytes()
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal sends it: to all of its processes
        assert wait_for(server.process, 20) == 0
        assert list(server.uploads.iterdir()) == []
        assert server.log.read_text().splitlines()[-1] == "stopped"
        assert "Traceback" not in server.log.read_text()
