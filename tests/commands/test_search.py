from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mavil.commands import search
from mavil.search.queries import NewFiles
from tests.commands.conftest import Outcome
from tests.search.test_decoding import write_wav
from tests.search.test_matching import unit
from tests.support.stored_embeddings import searchable, write_embeddings

Mavil = Callable[..., Outcome]


def test_search_with_faiss_and_without(mavil: Mavil, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    made = searchable()
    index = Path(shutil.copytree(made.index, tmp_path / "index"))
    query = shutil.copy(made.files[3], tmp_path / "query.mp4")
    text = tmp_path / "broken.mp4"
    text.write_text("plain text")
    built = mavil("index", index, "--kind", "flat")
    assert built.code == 0, built.err
    assert "flat (exact), built in" in built.out
    assert "finds 100.0 % of the 10 nearest rows" in built.out
    asked = ("--by", "video", "--find", "video", "--top", 2, "--max-seconds", 3)
    for options, how in (((), "FAISS flat over"), (("--exact",), "exact search over")):
        told = mavil("search", index, text, query, *asked, "--json", *options)
        assert told.code == 2
        failed, answered = map(json.loads, told.out.splitlines())
        assert failed["query"] == str(text)
        assert failed["error"].startswith(f"{text}: it cannot be decoded")
        assert "mavil: 1 of 2 queries were not answered" in told.err
        assert answered["search"].startswith(how)
        assert answered["notes"] == ["only the first 3 s of its picture were searched"]
        (answer,) = answered["answers"]
        best, second = answer["matches"]
        assert (best["key"], best["rank"], second["rank"]) == (made.files[3].stem, 1, 2)
        assert best["score"] > 0.999
        assert best["start_seconds"] == best["query_start_seconds"]


def test_the_table_says_what_is_where(mavil: Mavil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    made = searchable()
    told = mavil("search", made.index, made.files[0], "--by", "audio", "--find", "any", "--top", 1)
    assert told.code == 0, told.err
    assert f"{made.files[0]} by its sound: sound and picture of clips" in told.out
    (line,) = [line for line in told.out.splitlines() if "1.000" in line]
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells[:3] == ["1", "1.000", made.files[0].stem]
    assert cells[3].endswith("(sound)")
    assert cells[5] == str(made.files[0])


def test_names_are_text_to_the_terminal() -> None:
    assert search._plain("[red]a\x1b[2J") == "\\[red]a?[2J"
    assert search._span(62.56, 3600.0) == "1:02.6-60:00.0"


def test_watching_answers_files_as_they_come(mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = searchable(), tmp_path / "incoming"
    folder.mkdir()
    looks = []
    look = NewFiles.look

    def look_and_count(self: NewFiles) -> list[Path]:
        looks.append(1)
        if len(looks) == 2:
            write_wav(folder / "tone.wav", 1.0)
            (folder / "broken.wav").write_text("plain text")
        if len(looks) == 6:
            raise KeyboardInterrupt
        return look(self)

    monkeypatch.setattr(search, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(NewFiles, "look", look_and_count)
    told = mavil("search", made.index, folder, "--watch", "--json")
    assert told.code == 0, told.err
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [Path(line["query"]).name for line in lines] == ["broken.wav", "tone.wav"]
    assert "error" in lines[0]
    assert len(lines[1]["answers"][0]["matches"]) == 4
    assert told.err.splitlines()[-1] == "stopped"


def test_mistakes_are_one_line(mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = searchable()
    sound = write_wav(tmp_path / "a.wav", 1.0)
    empty = write_embeddings(tmp_path / "empty", {"audio": np.zeros((0, 8))}, [])
    lost = write_embeddings(tmp_path / "lost", {"audio": unit(1)}, ["a"], model="runs/gone")
    other = write_embeddings(tmp_path / "other", {"audio": unit(1)}, ["a"], model=str(made.run))

    def line(*arguments: object) -> str:
        told = mavil(*arguments)
        assert told.code == 2
        return told.err.splitlines()[-1]

    assert "no such file" in line("search", made.index, tmp_path / "none.wav")
    assert "holds no embeddings (no about.json)" in line("search", tmp_path, sound)
    assert "holds no embeddings: embed at least one clip" in line("search", empty, sound)
    assert "holds no embeddings: embed at least one clip" in line("index", empty)
    assert "say where it is with --model" in line("search", lost, sound)
    assert "is an index of another model" in line("search", other, sound)
    assert "is an index of another model" in line("serve", other, "--port", 0)
    assert "--watch" in line("search", made.index, sound, "--watch")
    assert "--host 192.0.2.1 --port 8000: cannot listen" in line("serve", made.index, "--host", "192.0.2.1")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'mavil[serve]'" in line("serve", made.index)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install 'mavil[faiss]'" in line("index", made.index)
