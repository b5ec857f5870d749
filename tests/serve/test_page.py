"""The page in a real browser: what a person does and sees."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.search.test_decoding import write_wav
from tests.serve.server import Server
from tests.support.processes import wait_until
from tests.support.stored_embeddings import searchable

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DROP = """([text, name, type]) => {
  const bytes = Uint8Array.from(atob(text), char => char.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, {type}));
  document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
MEDIA = "Array.from(document.querySelectorAll('.found video')).map(v => [v.readyState, v.currentTime, v.videoWidth])"


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    """The page, opened; what its script complains of is in ``page.complaints``."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.complaints = []
        opened.on("console", lambda message: opened.complaints.append(message.text))
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.goto(server.address)
        seen(lambda: opened.inner_text("#limits"))
        yield opened
        browser.close()


def drop(page: Any, path: Path, kind: str, name: str = "") -> None:
    page.evaluate(DROP, [base64.b64encode(path.read_bytes()).decode(), name or path.name, kind])


def seen(look: Callable[[], object]) -> None:
    """Wait until it is so; the page's policy forbids the browser's own way, which is a script."""
    assert wait_until(lambda: look() or None, 60, pause=0.05)


def test_dropping_a_film_shows_clips_at_the_seconds_that_fit(page: Any, tmp_path: Path) -> None:
    assert "4 clips in" in page.inner_text("#index")
    file = searchable().files[1]
    page.check("input[name=by][value=audio]")
    page.check("input[name=find][value=audio]")
    drop(page, file, "video/mp4")
    page.wait_for_selector(".found article")
    assert page.locator("h2").all_inner_texts() == ["By its sound: sounds"]
    assert page.locator(".found article").count() == 4
    first = page.locator(".found article").first
    assert first.locator(".key").inner_text() == file.stem
    assert "cosine 1.000" in first.inner_text()
    seen(lambda: all(ready >= 2 and width for ready, _, width in page.evaluate(MEDIA)))
    starts = [float(source.partition("#t=")[2].partition(",")[0]) for source in page.locator(".found video").evaluate_all(
        "videos => videos.map(video => video.src)")]  # fmt: skip
    assert [time for _, time, _ in page.evaluate(MEDIA)] == pytest.approx(starts, abs=0.05)
    assert any(start > 0.5 for start in starts)
    assert min(starts) > 0  # at 0 itself a player shows no picture
    # A sound finds pictures by default, and other directions are searched when they are chosen.
    page.check("input[name=by][value='']")
    page.check("input[name=find][value='']")
    drop(page, write_wav(tmp_path / "tone.wav", 1.0), "audio/wav")
    seen(lambda: page.locator("h2").all_inner_texts() == ["By its sound: pictures"])
    assert page.inner_text("#status") == "searched without its picture: the file has no picture track"
    assert page.locator("#query audio").count() == 1
    assert page.complaints == []


def test_what_cannot_be_searched_is_said_on_the_page(page: Any, tmp_path: Path) -> None:
    text, large = tmp_path / "notes.mp4", tmp_path / "large.mp4"
    text.write_text("plain text")
    large.write_bytes(bytes(1_000_001))
    drop(page, text, "video/mp4", name="<b>notes</b>.mp4")
    page.wait_for_selector("#status.failed")
    assert page.inner_text("#status").startswith("<b>notes</b>.mp4: it cannot be decoded")
    drop(page, large, "video/mp4")
    assert page.inner_text("#status").startswith("The file has 1.0 MB; at most 1 MB are taken")
    assert page.locator(".found").count() == 0
