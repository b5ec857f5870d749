from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mavil.commands.index import agreement
from mavil.search import faiss_files
from mavil.search.faiss_files import Kind
from mavil.search.index import SearchIndex
from mavil.structs import UserError
from tests.search.test_matching import unit
from tests.support.stored_embeddings import write_embeddings


def test_a_match_says_which_seconds_of_which_clip(tmp_path: Path) -> None:
    values = unit(4)
    folder = write_embeddings(tmp_path / "index", {"audio": values, "video": values}, list("aabc"), [0, 1.5, 0, 2])
    index = SearchIndex(folder)
    first, second, third = index.search(values[1:2], [3.0], [3.5], "video", 10)
    assert (first.key, first.source, first.clip, first.rank) == ("a", "a.mp4", 0, 1)
    assert (first.start_seconds, first.end_seconds) == (1.5, 2.5)
    assert (first.query_start_seconds, first.query_end_seconds) == (3.0, 3.5)
    assert first.score == pytest.approx(1.0, abs=1e-6)
    assert {second.key, third.key} == {"b", "c"}
    assert index.how == "exact search over 4 rows of 3 clips"


def test_rows_without_the_modality_are_never_found(tmp_path: Path) -> None:
    """A row of zeros would stand before every embedding that points away from the query."""
    values = unit(3)
    present = {"audio": [True] * 3, "video": [False, True, False]}
    shown = values * np.array([[0], [1], [0]])
    folder = write_embeddings(tmp_path / "index", {"audio": values, "video": shown}, list("abc"), present=present)
    (match,) = SearchIndex(folder).search(-values[1:2], [0.0], [1.0], "video", 10)
    assert match.key == "b"
    assert [clip.has_video for clip in SearchIndex(folder).clips] == [False, True, False]


def test_what_is_fused_is_not_searched(tmp_path: Path) -> None:
    """The second row has nothing but that; it is as wide as the others, and would fit the query best."""
    values, nothing = unit(3), np.zeros((3, 8))
    shown = {"audio": values * [[1], [0], [1]], "video": nothing, "fused": values}
    flags = {"audio": [True, False, True], "video": [False] * 3, "fused": [True] * 3}
    clips, starts = ["a", "a", "b"], [0, 1.5, 0]
    index = SearchIndex(write_embeddings(tmp_path / "index", shown, clips, starts, flags))  # type: ignore[arg-type]
    found = index.search(values[1:2], [0.0], [1.0], "audio", 10)
    assert sorted((match.key, match.start_seconds) for match in found) == [("a", 0.0), ("b", 0.0)]
    assert max(match.score for match in found) < 0.9
    assert index.modalities == ("audio",)
    assert [(clip.has_audio, clip.has_video) for clip in index.clips] == [(True, False)] * 2
    assert index.how == "exact search over 2 rows of 2 clips"


def test_what_an_index_lacks_is_said(tmp_path: Path) -> None:
    index = SearchIndex(write_embeddings(tmp_path / "sounds", {"audio": unit(1)}, ["only"]))
    with pytest.raises(UserError, match=r"no embeddings of video \(only audio\)"):
        index.search(unit(1), [0.0], [1.0], "video", 10)
    with pytest.raises(UserError, match=r"have 5 numbers, those of audio .* 8: this model does not compare"):
        index.search(unit(1, width=5), [0.0], [1.0], "audio", 10)
    assert [match.key for match in index.search(unit(1), [0.0], [1.0], "audio", 10)] == ["only"]  # a gallery of one
    with pytest.raises(UserError, match=r"index of another model: made by a model .* but runs/b has weights 0123"):
        index.check_model("runs/b", "0123")
    index.check_model("anywhere", "digest")
    with pytest.raises(UserError, match="holds no embeddings: embed at least one clip"):
        SearchIndex(write_embeddings(tmp_path / "empty", {"audio": np.zeros((0, 8))}, []))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_faiss_finds_what_exact_search_finds(tmp_path: Path, kind: Kind) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    values, queries = unit(600), unit(3, seed=1)
    clips = [f"clip{row // 3}" for row in range(600)]
    folder = write_embeddings(tmp_path / "index", {"audio": values}, clips)
    exactly = SearchIndex(folder)
    built = faiss_files.build(kind, values)
    assert faiss_files.is_exact(built) == (kind == "flat")
    assert agreement(built, values) > (0.999 if kind == "flat" else 0.6)
    faiss_files.write(folder, kind, str(exactly.embeddings.about["digest"]), {"audio": built})
    index = SearchIndex(folder)
    assert index.how == f"FAISS {kind} over 600 rows of 200 clips"
    assert index.notices == []
    times = [0.0] * 3, [1.0] * 3
    found = [match.key for match in index.search(queries, *times, "audio", 150)]
    wanted = [match.key for match in exactly.search(queries, *times, "audio", 150)]
    assert len(found) == 150
    assert found[:1] == wanted[:1]
    assert len(set(found) & set(wanted)) > (149 if kind == "flat" else 100)
    assert SearchIndex(folder, exact=True).how.startswith("exact")


def test_faiss_files_of_other_embeddings_or_damaged_ones_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    folder = write_embeddings(tmp_path / "index", {"audio": unit(20)}, [str(n) for n in range(20)])
    index = SearchIndex(folder)
    digest = str(index.embeddings.about["digest"])
    faiss_files.write(folder, "flat", digest, {"audio": faiss_files.build("flat", unit(20))})
    (file,) = folder.glob("faiss-*.audio")
    content = file.read_bytes()

    def told() -> str:
        opened = SearchIndex(folder)
        assert opened.how.startswith("exact search")
        (notice,) = opened.notices
        return notice

    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "was changed since it was written" in told()
    file.unlink()
    assert "the FAISS files are damaged" in told()
    file.write_bytes(content)
    assert SearchIndex(folder).how.startswith("FAISS flat")
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "faiss", None)
        assert "pip install 'mavil[faiss]'" in told()
    (folder / faiss_files.NOTE).write_text(json.dumps({"format": 1}))
    assert f"run mavil index {folder} again" in told()
    # Other embeddings, of the same shape.
    faiss_files.write(folder, "flat", digest, {"audio": faiss_files.build("flat", unit(20))})
    write_embeddings(folder, {"audio": unit(20, seed=9)}, [str(n) for n in range(20)])
    assert "built of other embeddings: searching exactly" in told()


def test_a_killed_mavil_index_leaves_the_files_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    folder = write_embeddings(tmp_path / "index", {"audio": unit(200)}, [str(n) for n in range(200)])
    digest = str(SearchIndex(folder).embeddings.about["digest"])
    faiss_files.write(folder, "flat", digest, {"audio": faiss_files.build("flat", unit(200))})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    graph = {"audio": faiss_files.build("hnsw", unit(200))}
    with monkeypatch.context() as dying:
        dying.setattr(faiss_files, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            faiss_files.write(folder, "hnsw", digest, graph)
    assert SearchIndex(folder).how.startswith("FAISS flat")
    faiss_files.write(folder, "hnsw", digest, {"audio": faiss_files.build("hnsw", unit(200))})
    assert SearchIndex(folder).how.startswith("FAISS hnsw")
    assert len(list(folder.glob("faiss-*"))) == 1  # nothing is left of the first
