from __future__ import annotations

import csv
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mavil as package
from mavil.commands import embed as command
from mavil.data import isolation
from mavil.data.media import decode_audio, encode_clip
from mavil.data.synthetic import FRAMES_PER_SECOND, synthetic_clip
from mavil.embedder import bulk, bulk_decoding, bulk_windows
from mavil.embedder.stored import EmbeddingSet, read_embeddings
from mavil.search.index import SearchIndex
from mavil.structs import Modality
from tests.commands.conftest import Outcome
from tests.support.random_runs import write_run
from tests.support.ranks import run_in_ranks
from tests.support.recipes import tiny_recipe

Mavil = Callable[..., Outcome]
NUM_CLIPS, PART = 7, 3


def run_of(folder: Path, seed: int = 4) -> Path:
    recipe = tiny_recipe()
    assert recipe.audio is not None
    audio = recipe.audio.model_copy(update={"mean": -5.0, "std": 4.0})
    return write_run(folder, recipe.model_copy(update={"audio": audio}), seed=seed)


def names_in(tar: Path | str) -> list[str]:
    with tarfile.open(tar) as opened:
        return opened.getnames()


@pytest.fixture(scope="module")
def place(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run``, ``files`` (some clips of the gallery) and ``wav``, a file without a picture."""
    folder = tmp_path_factory.mktemp("embed")
    run_of(folder / "run")
    (folder / "files").mkdir()
    media = sorted((name, path) for path in (shards / "gallery").glob("*.tar") for name in names_in(path))
    for name, path in [one for one in media if one[0].endswith(".mp4")][:NUM_CLIPS]:
        with tarfile.open(path) as tar:
            (folder / "files" / name).write_bytes(tar.extractfile(name).read())  # type: ignore[union-attr]
    return folder


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CLIPS_PER_PART", PART)


def same(found: EmbeddingSet, expected: EmbeddingSet, tolerance: float = 0.0) -> None:
    assert found.keys == expected.keys
    assert np.array_equal(found.starts, expected.starts)
    assert np.array_equal(found.ends, expected.ends)
    for modality, values in expected.values.items():
        assert np.array_equal(found.present[modality], expected.present[modality])
        assert np.abs(found.values[modality] - values).max() <= tolerance


def rows_of(found: EmbeddingSet, key: str, modality: Modality) -> np.ndarray:
    return np.array([k == key for k in found.keys]) & found.present[modality]


@pytest.mark.parametrize("hop", [None, 0.5])
def test_rows_are_what_the_embedder_gives_for_the_file(
    place: Path, mavil: Mavil, tmp_path: Path, hop: float | None
) -> None:
    options = [] if hop is None else ["--hop", hop]
    outcome = mavil("embed", place / "run", place / "files", "out", "--workers", 0, "--batch", 5, *options)
    assert (outcome.code, outcome.err) == (0, "")
    found = read_embeddings(tmp_path / "out")
    model = package.load(place / "run", output="numpy")
    assert len(found.about["model"]["weights_digest"]) > 8
    assert found.about["model"]["source"] == str(place / "run")
    for path in sorted((place / "files").iterdir())[:: NUM_CLIPS - 1]:
        for modality, method in (("audio", model.embed_audio), ("video", model.embed_video)):
            expected = method(path, windows=True, hop_seconds=hop)
            rows = rows_of(found, path.stem, modality)  # type: ignore[arg-type]
            assert set(np.array(found.sources)[rows]) == {str(path)}
            assert np.array_equal(found.starts[rows], expected.starts)
            assert np.array_equal(found.ends[rows], expected.ends)
            assert np.abs(found.values[modality][rows] - expected.values).max() <= 1e-5  # type: ignore[index]
    assert list(found.starts[: len(found) // NUM_CLIPS]) == sorted(found.starts[: len(found) // NUM_CLIPS])


def test_one_row_per_clip_is_the_mean_over_its_windows(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    assert (
        mavil(
            "embed",
            place / "run",
            place / "files",
            "out",
            "--workers",
            0,
            "--mean",
            "--format",
            "npy",
            "--checkpoint",
            0,
        ).code
        == 0
    )
    found = read_embeddings(tmp_path / "out")
    assert found.about["model"]["checkpoint"] == "0"
    files = sorted((place / "files").iterdir())
    model = package.load(place / "run", output="numpy")
    assert found.keys == [path.stem for path in files]
    assert np.abs(found.values["audio"] - model.embed_audio(files)).max() <= 1e-5
    assert np.abs(found.values["video"] - model.embed_video(files)).max() <= 1e-5
    assert np.all(found.starts == 0)
    assert np.all(found.ends >= 3.9)


def test_clips_in_shards_have_the_same_rows_as_files(place: Path, shards: Path, mavil: Mavil, tmp_path: Path) -> None:
    """Also decoded by another process, and both inputs at once."""
    inputs = (shards / "gallery", place / "files")
    assert mavil("embed", place / "run", *inputs, "out", "--workers", 1, "--fused").code == 0
    found = read_embeddings(tmp_path / "out")
    assert set(found.values) == {"audio", "video", "fused"}
    model = package.load(place / "run", output="numpy")
    sources = np.array(found.sources)
    for path in (place / "files").iterdir():
        mine = np.array([k == path.stem for k in found.keys])
        in_files = mine & (sources == str(path))
        assert 0 < in_files.sum() == mine.sum() - in_files.sum()
        for values in found.values.values():
            assert np.abs(values[in_files] - values[mine & ~in_files]).max() <= 1e-5
        expected = model.embed(path, windows=True).values
        assert np.abs(found.values["fused"][mine & ~in_files & found.present["fused"]] - expected).max() <= 1e-5
        (source,) = set(sources[mine & ~in_files])
        tar, _, key = source.partition("::")
        assert key == path.stem
        assert f"{key}.mp4" in names_in(tar)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """How many windows were embedded; ``stop_at`` ends the program there, as Ctrl-C would."""
    told: dict[str, Any] = {"windows": 0, "stop_at": None}
    real = bulk.encoder_of

    def encoder_of(model: Any) -> Any:
        encode = real(model)

        def counting(modality: Modality, arrays: Any) -> np.ndarray:
            told["windows"] += len(arrays)
            if told["stop_at"] is not None and told["windows"] >= told["stop_at"]:
                raise KeyboardInterrupt
            return encode(modality, arrays)

        return counting

    monkeypatch.setattr(command, "encoder_of", encoder_of)
    return told


def test_a_stopped_call_goes_on_where_it_was(
    place: Path, mavil: Mavil, tmp_path: Path, counted: dict[str, Any]
) -> None:
    call = ("embed", place / "run", place / "files", "out", "--workers", 0, "--batch", 4)
    whole = tmp_path / "whole"
    assert mavil(*call[:3], whole, *call[4:]).code == 0
    total, counted["windows"] = counted["windows"], 0
    counted["stop_at"] = total * 2 // 3
    outcome = mavil(*call)
    assert outcome.code == 75
    assert "the same command goes on" in outcome.err
    assert [path.name for path in sorted((tmp_path / "out/parts").iterdir())] == ["000000.safetensors"]
    counted["stop_at"], counted["windows"] = None, 0
    outcome = mavil(*call)
    assert outcome.code == 0
    assert f"of {NUM_CLIPS} clips" in outcome.out
    # One part of three clips was there, and had both modalities.
    assert counted["windows"] == total - PART * total // NUM_CLIPS
    same(read_embeddings(tmp_path / "out"), read_embeddings(whole), 1e-6)
    counted["windows"] = 0
    outcome = mavil(*call)
    assert (outcome.code, outcome.out, counted["windows"]) == (0, "out is complete, nothing to do\n", 0)


def test_another_model_or_a_changed_file_is_refused(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(place / "files", files)
    call = ("embed", place / "run", files, "out", "--workers", 0, "--modalities", "audio")
    assert mavil(*call).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for changed, told in (
        ((call[0], run_of(tmp_path / "other", seed=5), *call[2:]), "weights"),
        ((*call, "--mean"), "--mean"),
    ):
        outcome = mavil(*changed)
        assert outcome.code == 2
        assert told in outcome.err
    next(files.iterdir()).touch()
    outcome = mavil(*call)
    assert outcome.code == 2
    assert "a file among them that has changed" in outcome.err
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_broken_files_are_listed_and_too_many_of_them_end_it(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(place / "files", files)
    (files / "a_text.mp4").write_text("no film at all")
    (files / "empty.wav").write_bytes(b"")
    call = ("embed", place / "run", files, "out", "--workers", 0)
    outcome = mavil(*call)
    assert outcome.code == 2
    assert "2 of 9 clips cannot be used" in outcome.err
    assert "--max-skip-ratio (now 0.05)" in outcome.err

    def listed() -> list[tuple[str, str]]:
        with open(tmp_path / "out/left_out.csv", newline="") as file:
            return sorted((Path(row["path"]).name, row["cause"]) for row in csv.DictReader(file))

    assert listed() == [("a_text.mp4", "undecodable"), ("empty.wav", "undecodable")]
    outcome = mavil(*call, "--max-skip-ratio", 0.3)
    assert outcome.code == 0
    assert "2 clips left out (" in outcome.out
    assert listed() == [("a_text.mp4", "undecodable"), ("empty.wav", "undecodable")]
    found = read_embeddings(tmp_path / "out")
    assert (found.about["clips"], found.about["left_out"]) == (NUM_CLIPS, {"undecodable": 2})
    assert not {"a_text", "empty"} & set(found.keys)


def test_many_broken_files_end_it_before_the_others_are_read(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for number in range(30):
        (tmp_path / "files" / f"{number:02d}.mp4").write_text("no film at all")
    outcome = mavil("embed", place / "run", "files", "out", "--workers", 0)
    assert outcome.code == 2
    assert outcome.err.startswith("mavil: 8 of 8 clips cannot be used")
    with open(tmp_path / "out/left_out.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_a_clip_that_takes_too_long_is_left_out(
    place: Path, mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(bulk_windows, "probe", hangs)
    film = next((place / "files").iterdir())
    outcome = mavil("embed", place / "run", film, "out", "--workers", 0, "--seconds-per-clip", 0.1)
    assert outcome.code == 2
    assert "(timeout)" in outcome.err


def draws_ahead(function: Callable, items: Iterable, **_: Any) -> Iterator[isolation.Outcome]:
    """As a pool of workers does that is faster than the model."""
    for item in list(items):
        yield isolation.Outcome(item, function(item))


@pytest.mark.parametrize("is_ahead", [False, True])
def test_long_clips_come_in_pieces_and_in_order(
    place: Path, mavil: Mavil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ahead: bool
) -> None:
    """And a clip that has no window more than a piece is done before the others, but keeps its place."""
    files = tmp_path / "files"
    files.mkdir()
    for number, path in enumerate(sorted((place / "files").iterdir())[:3]):
        shutil.copy(path, files / f"{number}.mp4")
    short = decode_audio((files / "0.mp4").read_bytes(), 1.0)
    (files / "1b.m4a").write_bytes(encode_clip(None, 25, short))
    call = ("embed", place / "run", files, "--workers", 0, "--hop", 0.2)
    assert mavil(*call[:3], "whole", *call[3:]).code == 0
    monkeypatch.setattr(bulk_windows, "MOST_WINDOWS", 5)
    if is_ahead:
        monkeypatch.setattr(bulk_decoding, "map_isolated", draws_ahead)
    assert mavil(*call[:3], "pieces", *call[3:], "--batch", 3).code == 0
    found = read_embeddings(tmp_path / "pieces")
    assert list(dict.fromkeys(found.keys)) == ["0", "1", "1b", "2"]
    assert not found.present["video"][[key == "1b" for key in found.keys]].any()
    assert not found.values["video"][~found.present["video"]].any()
    same(found, read_embeddings(tmp_path / "whole"), 1e-6)


def test_a_span_of_a_list_has_the_times_of_its_file(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    film = sorted((place / "files").iterdir())[0]
    (tmp_path / "list.csv").write_text(f"path,start,end\n{film},1.5,3\n{film},,\n{tmp_path}/gone.mp4,,\n")
    call = ("embed", place / "run", "list.csv", "out", "--workers", 0, "--modalities", "video", "--max-skip-ratio", 0.5)
    outcome = mavil(*call)
    assert outcome.code == 0, outcome.err
    assert "(missing 1)" in outcome.out
    found = read_embeddings(tmp_path / "out")
    assert found.starts.tolist() == pytest.approx([1.5, 2.0, 0.0, 1.0, 2.0, 3.0], abs=0.01)
    assert set(found.sources) == {str(film)}
    assert set(found.values) == {"video"}
    expected = package.load(place / "run", output="numpy").embed_video(film, windows=True)
    # The span is encoded anew, as mavil shards make does: the picture at 2 s to 3 s is nearly the same.
    assert found.values["video"][1] @ expected.values[2] > 0.99


def test_a_folder_with_what_is_fused_is_searched_as_one_without(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    made = synthetic_clip(0, 0)
    (tmp_path / "longer.mp4").write_bytes(encode_clip(made.frames[:8], FRAMES_PER_SECOND, made.waveform[:40_000]))
    films = [tmp_path / "longer.mp4", *sorted((place / "files").iterdir())[:2]]
    indexes = []
    for out, option in (("plain", "--no-fused"), ("fused", "--fused")):
        assert mavil("embed", place / "run", *films, out, "--workers", 0, option).code == 0
        indexes.append(SearchIndex(tmp_path / out))
    plain, fused = indexes
    assert len(fused.embeddings) > len(
        plain.embeddings
    )  # where the pictures have ended windows of both have rows of their own
    assert (fused.how, fused.clips, fused.modalities) == (plain.how, plain.clips, plain.modalities)

    def matches(index: SearchIndex) -> list[tuple[str, float, float]]:
        query = plain.embeddings.values["audio"][plain.embeddings.present["audio"]][:2]
        found = index.search(query, [0.0, 1.0], [1.0, 2.0], "video", 3)
        assert len(found) == 3
        return [(match.key, match.start_seconds, round(match.score, 4)) for match in found]

    assert matches(fused) == matches(plain)
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    built = mavil("index", "fused", "--kind", "flat")
    assert built.code == 0, built.err
    assert [line.partition(":")[0] for line in built.out.splitlines()] == ["audio", "video"]
    again = SearchIndex(tmp_path / "fused")
    assert (again.how, again.notices) == (plain.how.replace("exact search", "FAISS flat"), [])
    assert matches(again) == matches(plain)


def test_what_cannot_be_embedded_is_told_in_one_line(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no list")
    run, files = place / "run", place / "files"
    calls = {
        (run, files): "name what to embed and, last, the folder",
        (run, "nowhere", "out"): "nothing of this name",
        (run, "notes.txt", "out"): "a source is a folder of media files or a .csv list",
        (run, files, "out", "--modalities", "smell"): "choose of these",
        (
            run,
            files,
            "out",
            "--modalities",
            "audio",
            "--fused",
        ): "--modalities audio --fused: what is fused is of audio and",
        (run, files, "out", "--hop", -1): "more than 0",
        (run, files, "out", "--format", "hdf5"): "choose one of safetensors, npy, parquet",
        (run, files, "out", "--device", "tpu"): "choose auto, cpu or cuda",
        (run, files, files): "holds something else",
    }
    for arguments, told in calls.items():
        outcome = mavil("embed", *arguments)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), arguments
        assert told in outcome.err
    assert not (tmp_path / "out").exists()


def embed_in_rank(run: str, files: str, out: str) -> None:
    command.CLIPS_PER_PART = PART
    model = package.load(run, device="cpu")
    clips = bulk.AllClips([files])
    settings = command.settings_for(model, clips, [files], True, [], None, "float32", "safetensors", fused=True)
    command.embed_into(Path(out), model, clips, settings, bulk.Work(workers=0), command.Console(quiet=True))


def test_two_processes_make_the_folder_of_one(place: Path, mavil: Mavil, tmp_path: Path) -> None:
    call = ("embed", place / "run", place / "files", "one", "--workers", 0, "--mean", "--fused")
    assert mavil(*call).code == 0
    run_in_ranks(embed_in_rank, str(place / "run"), str(place / "files"), str(tmp_path / "two"))
    same(read_embeddings(tmp_path / "two"), read_embeddings(tmp_path / "one"), 1e-6)
    for name in ("rows.csv", "left_out.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
