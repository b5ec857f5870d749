"""The benchmark of exact search: every contender runs on every size, and large products are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mavil.structs import UserError
from tools.benchmarks import searching


def test_every_contender_is_read_on_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(searching, "_apart", searching.measure)  # a process for each takes seconds
    monkeypatch.setattr(searching.importlib.util, "find_spec", lambda name: None)  # as without FAISS
    settings = {"queries": 50, "width": 8, "k": 3, "rounds": 2, "threads": 1, "device": "cpu"}
    searching.search("40,90", largest_product=50 * 80 * 4 / 2**30, json_file=tmp_path / "r.json", **settings)  # type: ignore[arg-type]
    readings = json.loads((tmp_path / "r.json").read_text())["readings"]
    found = [(one["contender"], one["queries"], one["gallery"]) for one in readings]
    once = [("nearest", 40, 40), ("ranks", 40, 40), ("one product", 40, 40), ("nearest", 50, 90), ("ranks", 50, 90)]
    assert found == once * 2
    assert all(one["seconds"] > 0 and one["added_mib"] >= 0 for one in readings)
    assert "50 x 90" in capsys.readouterr().out
    with pytest.raises(UserError, match="--sizes 4k: numbers of embeddings"):
        searching.search("4k")
