import base64
import io
import logging
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from mavil.evaluation.probing import CueResult, ProbeResult
from mavil.evaluation.retrieval import both_directions
from mavil.report import page
from mavil.report.charts import Chart, Charts, Line
from mavil.report.examples import Hit, Media, Panel, ReconstructionExample, RetrievalExample
from mavil.report.page import Check, Listing, Report, Section, write_page
from mavil.report.sound import wav_bytes
from mavil.report.tables import Bar, Comparison, Table, comparison_table, cue_block, retrieval_table

VOID = {"meta", "img", "br", "path", "circle", "polyline"}
ATTACK = "<script>alert(\"1\")</script> & 'more'"


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    return stream.getvalue()


MP4 = b"\x00\x00\x00\x18ftypisom" + bytes(16)
WAV = wav_bytes(torch.zeros(10))


class WellFormed(HTMLParser):
    """Fails on a tag that is not closed in order; keeps what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> WellFormed:
    parser = WellFormed()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def everything(text: str) -> Report:
    """A report with each kind of block, ``text`` wherever a person's words can be."""
    cue = CueResult(text, "labels", 0.3, {"audio": ProbeResult("labels", 0.9, 0.3, 4)}, {"audio": 0.2})
    loud = CueResult("loudness", "value", 0.0, {"audio": ProbeResult("value", 0.5, 0.0, spearman=0.7)}, {"audio": -0.1})
    embeddings = torch.randn(6, 4)
    still, sound, clip = Media(png(), text), Media(WAV, text), Media(MP4, text, poster=png())
    hits = [Hit(clip, 1, False, text), Hit(clip, 2, True, text)]
    blocks: Sequence[page.Block] = [
        Table([text, "b"], [[text, Bar(0.5, 1.0, text, chance=0.1)]], caption=text, note=text),
        comparison_table([Comparison(text, text, 0.9, 0.5, 0.1)], text),
        retrieval_table({text: both_directions(embeddings, embeddings)}, text),
        cue_block([cue, loud], text),
        Charts([Chart(text, [Line(text, [0, 1], [1, 0])], text, text)], text),
        ReconstructionExample(text, [Panel(text, still, still, {text: sound})], 2.0, text),
        RetrievalExample(text, sound, hits, 2, 6, text),
        Listing(text, text),
    ]
    checks = [Check(text, text, text, True), Check(text, text, text, False)]
    return Report(text, [text], checks, [Section(text, text, blocks)], text, [Listing(text, text)])


def test_page_is_well_formed_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    size = write_page(path, everything("plain words"))
    source = path.read_text(encoding="utf-8")
    assert size == len(source.encode())
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    parsed = read(path)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", source)
    for _, attributes in parsed.tags:
        for name in ("src", "href", "poster"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))


def test_words_cannot_become_markup(tmp_path: Path) -> None:
    write_page(tmp_path / "plain.html", everything("word"))
    write_page(tmp_path / "attack.html", everything(ATTACK))
    plain, attacked = read(tmp_path / "plain.html"), read(tmp_path / "attack.html")
    assert [(tag, list(attributes)) for tag, attributes in plain.tags] == [
        (tag, list(attributes)) for tag, attributes in attacked.tags
    ]
    assert attacked.text.count(ATTACK) == plain.text.count("word")


def test_pictures_have_words_and_tables_have_headers(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", everything("described"))
    tags = read(tmp_path / "report.html").tags
    assert all(attributes["alt"] == "described" for tag, attributes in tags if tag == "img")
    labelled = [attributes for tag, attributes in tags if tag in ("audio", "video", "svg")]
    assert len(labelled) == 5
    assert all("described" in (attributes["aria-label"] or "") for attributes in labelled)
    scopes = [attributes["scope"] for tag, attributes in tags if tag == "th"]
    assert scopes.count("row") == 1 + 1 + 2 + 2
    assert scopes.count("col") == 2 + 6 + 7 + 5


def test_media_are_inside_unchanged() -> None:
    m4a = b"\x00\x00\x00\x1cftypM4A " + bytes(16)
    kinds = [(png(), "image/png"), (WAV, "audio/wav"), (m4a, "audio/mp4"), (MP4, "video/mp4")]
    tags = {"image": "img", "audio": "audio", "video": "video"}
    for data, kind in kinds:
        html = Media(data, "x").html()
        assert html.startswith(f"<{tags[kind.split('/')[0]]}")
        found = re.search(r'src="data:([\w/]+);base64,([^"]*)"', html)
        assert found is not None
        assert (found[1], base64.b64decode(found[2])) == (kind, data)
    with pytest.raises(ValueError, match="'notes' is neither PNG, JPEG, WAV, M4A nor MP4"):
        Media(b"hello there", "notes").html()


def test_verdict_counts_what_failed(tmp_path: Path) -> None:
    def headline(*passed: bool) -> str:
        checks = [Check("name", "1", "2", p) for p in passed]
        write_page(tmp_path / "report.html", Report("t", [], checks, [], "e"))
        return (tmp_path / "report.html").read_text()

    assert "All 2 checks passed" in headline(True, True)
    assert "1 of 3 checks failed" in headline(True, False, True)
    assert 'class="verdict' not in headline()


def test_right_clip_is_marked_and_stands_apart_when_far_down() -> None:
    clip = Media(MP4, "clip")
    near = RetrievalExample("q", clip, [Hit(clip, 1, True), Hit(clip, 2, False)], 1, 200).html()
    assert "right clip at rank 1 of 200" in near
    assert near.count("hit answer") == 1
    assert "apart" not in near
    far = RetrievalExample("q", clip, [Hit(clip, 1, False), Hit(clip, 17, True)], 17, 200).html()
    assert "hit answer apart" in far
    assert "17 · right clip" in far


def test_bars_show_value_and_chance_to_scale() -> None:
    assert "width:25.0%" in Bar(0.5, 2.0, "x", chance=1.0).html()
    assert "left:50.0%" in Bar(0.5, 2.0, "x", chance=1.0).html()
    assert "width:0.0%" in Bar(-3.0, 1.0, "x").html()
    assert 'class="chance"' not in Bar(0.5, 2.0, "x").html()


def test_retrieval_table_holds_both_directions_with_chance() -> None:
    audio, video = torch.randn(20, 4), torch.randn(20, 4)
    both = both_directions(audio, video)
    table = retrieval_table({"all": both}, "")
    assert [row[1] for row in table.rows] == ["sound → picture", "picture → sound"]
    bar = table.rows[0][2]
    assert isinstance(bar, Bar)
    assert (bar.value, bar.chance) == (both["audio_to_video"]["recall_at_1_percent"], 5)
    assert table.rows[0][5] == "5 / 25 / 50 %"


def test_ragged_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells in the table 'results' of 2 columns"):
        Table(["a", "b"], [["1"]], "results").html()


def test_a_failed_write_leaves_the_previous_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, everything("first"))
    broken = Report("t", [], [], [Section("s", "", [Table(["a"], [["1", "2"]], "c")])], "e")
    with pytest.raises(ValueError, match="2 cells"):
        write_page(path, broken)
    assert "first" in path.read_text()


def test_large_pages_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page, "LARGEST_PAGE", 1_000)
    with caplog.at_level(logging.WARNING):
        write_page(tmp_path / "report.html", everything("x"))
    assert "show fewer or shorter clips" in caplog.text
