from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mavil.embedder.loading import load
from mavil.search.decoding import QueryDecoder, decode_query
from mavil.search.index import SearchIndex
from mavil.search.queries import NewFiles, Searcher, query_files
from mavil.structs import UserError
from tests.search.test_decoding import WANTED, write_wav
from tests.search.test_matching import unit
from tests.support.stored_embeddings import searchable, write_embeddings


@pytest.fixture(scope="module")
def searcher() -> Iterator[Searcher]:
    made = searchable()
    with QueryDecoder() as decoder:
        yield Searcher(SearchIndex(made.index), load(made.run, device="cpu", output="numpy"), decoder, 60.0)


def test_a_clip_of_the_index_finds_itself_by_what_it_is_compared_with(searcher: Searcher) -> None:
    for number, file in enumerate(searchable().files):
        for modality in ("audio", "video"):
            (answer,) = searcher.answer(file, "q", modality, modality, 2).answers
            assert answer.matches[0].clip == number
            assert answer.matches[0].score == pytest.approx(1.0, abs=1e-4)


def test_scores_are_cosines_of_the_embeddings_of_the_file_itself(searcher: Searcher) -> None:
    """Across modalities, window by window, compared with every row; all but the last window are those of the path.

    The last one ends where the decoded sound does, a few hundredths of a second before the end of the last packet.
    """
    file = searchable().files[2]
    answered = searcher.answer(file, "q", None, None, 4)
    assert [(answer.by, answer.find) for answer in answered.answers] == [("audio", "video"), ("video", "audio")]
    held, decoded = searcher.index.embeddings, decode_query(str(file), WANTED)
    for answer in answered.answers:
        if answer.by == "audio":
            windows = searcher.model.embed_audio(decoded.sound, 16000, windows=True)
            of_path = searcher.model.embed_audio(file, windows=True)
        else:
            windows = searcher.model.embed_video(decoded.frames, 4, windows=True)
            of_path = searcher.model.embed_video(file, windows=True)
        np.testing.assert_allclose(windows.values[:-1], of_path.values[:-1], atol=1e-4)
        scores = windows.values @ held.values[answer.find].T  # type: ignore[index]
        assert answer.windows == len(scores)
        for match in answer.matches:
            columns = [row for row, key in enumerate(held.keys) if key == match.key]
            assert match.score == pytest.approx(scores[:, columns].max(), abs=1e-5)
            query, row = np.unravel_index(scores[:, columns].argmax(), scores[:, columns].shape)
            assert match.start_seconds == pytest.approx(float(held.starts[columns[row]]), abs=1e-3)
            assert match.query_start_seconds == pytest.approx(float(windows.starts[query]), abs=1e-3)
        assert [m.score for m in answer.matches] == sorted((m.score for m in answer.matches), reverse=True)


def test_any_joins_both_modalities_and_keeps_each_clip_once(searcher: Searcher) -> None:
    (answer,) = searcher.answer(searchable().files[1], "q", "audio", "any", 10).answers
    assert sorted(match.clip for match in answer.matches) == [0, 1, 2, 3]
    assert (answer.matches[0].clip, answer.matches[0].modality) == (1, "audio")
    assert [match.rank for match in answer.matches] == [1, 2, 3, 4]


def test_what_a_query_lacks_is_said(searcher: Searcher, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "sound.wav", 1.0)
    answered = searcher.answer(sound, "q", None, None, 3)
    assert [answer.by for answer in answered.answers] == ["audio"]
    assert answered.notes == ["searched without its picture: the file has no picture track"]
    with pytest.raises(UserError, match="no picture track, and only that was asked for"):
        searcher.answer(sound, "q", "video", None, 3)
    silent = searcher.answer(write_wav(tmp_path / "silent.wav", 1.0, level=0.0), "q", "audio", None, 3)
    assert len(silent.answers[0].matches) == 3
    assert silent.notes == ["its sound is silent: what comes back for it says little"]


def test_an_index_of_one_modality_and_one_of_another_model(searcher: Searcher, tmp_path: Path) -> None:
    width = searcher.model.width["audio"]
    made = write_embeddings(
        tmp_path / "sounds", {"audio": unit(2, width)}, ["a", "b"], weights_digest=searcher.model.weights_digest
    )
    with QueryDecoder() as decoder:
        of_sounds = Searcher(SearchIndex(made), searcher.model, decoder, 60.0)
        file = searchable().files[0]
        (answer,) = of_sounds.answer(file, "q", None, None, 3).answers
        assert (answer.by, answer.find) == ("video", "audio")
        with pytest.raises(UserError, match="nothing is found across modalities"):
            of_sounds.answer(file, "q", "audio", None, 3)
        with pytest.raises(UserError, match="has no embeddings of video: search for audio with --find audio"):
            of_sounds.answer(file, "q", None, "video", 3)
        other = write_embeddings(tmp_path / "other", {"audio": unit(2, width)}, ["a", "b"])
        with pytest.raises(UserError, match="is an index of another model"):
            Searcher(SearchIndex(other), searcher.model, decoder, 60.0)


def test_files_and_folders_of_queries(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.mp4", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert query_files([tmp_path / "notes.txt", tmp_path]) == [tmp_path / n for n in ("notes.txt", "a.mp4", "b.WAV")]
    with pytest.raises(UserError, match="the folder has no media file"):
        query_files([tmp_path / "empty"])
    with pytest.raises(UserError, match="no such file"):
        query_files([tmp_path / "c.mp4"])


def test_new_files_are_told_once_when_they_have_stopped_growing(tmp_path: Path) -> None:
    (tmp_path / "early.wav").write_bytes(b"1")
    new = NewFiles([tmp_path])
    assert new.look() == []
    assert new.look() == [tmp_path / "early.wav"]
    growing = tmp_path / "growing.wav"
    growing.write_bytes(b"1")
    assert new.look() == []
    growing.write_bytes(b"12")
    assert new.look() == []
    assert new.look() == [growing]
    assert new.look() == []
    os.utime(growing, ns=(1, 1))  # written anew, to the same length
    assert new.look() == []
    assert new.look() == [growing]
    growing.unlink()
    assert new.look() == []
