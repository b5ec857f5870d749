from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mavil.data.sources.listing import Reject
from mavil.embedder import stored_files
from mavil.embedder.stored import COMPLETE, UNFINISHED, read_embeddings
from mavil.embedder.stored_files import FileFormat, Piece, Rows
from mavil.embedder.stored_parts import PartWriter, Settings, state_of
from mavil.structs import UserError

SETTINGS = Settings(
    model="runs/mine",
    checkpoint="newest",
    weights_digest="abc",
    modalities={"audio": 3, "video": 2},
    rows="windows",
    window_seconds={"audio": 10.0, "video": 4.0},
    hop_seconds=None,
    precision="float32",
    inputs=["clips"],
    inputs_digest="def",
    clips_listed=5,
    clips_per_part=2,
    file_format="safetensors",
)
FUSED = replace(SETTINGS, fused={"audio": 3, "video": 4})
BROKEN = Reject("c4", "clips/c4.mp4", "undecodable", "it is text")


def piece(*keys: str) -> Piece:
    """Two rows a clip: the first has both modalities, the second only sound; what is fused stands in the second."""
    generator = np.random.default_rng(len(keys))
    names = [key for key in keys for _ in range(2)]
    has_video = np.array([True, False] * len(keys), dtype=bool)
    values = {
        m: generator.standard_normal((len(names), width)).astype(np.float32)
        for m, width in (("audio", 3), ("video", 2), ("fused", 7))
    }
    values["video"][~has_video] = 0
    values["fused"][has_video] = 0
    starts = np.array([0, 3.3] * len(keys), np.float32)
    rows = Rows(
        names,
        [f"clips, too/{n}.mp4" for n in names],
        starts,
        starts + np.float32(9.96),
        {
            "audio": np.ones(len(names), dtype=bool),
            "video": has_video,
            "fused": ~has_video,
        },
    )
    return Piece(rows, values)  # type: ignore[arg-type]


def written(folder: Path, file_format: FileFormat, settings: Settings = SETTINGS) -> list[Piece]:
    settings = replace(settings, file_format=file_format)
    writer = PartWriter(folder, settings)
    writer.begin()
    pieces = [piece("c0", "c1"), piece("c2", "c3"), piece()]
    for number in (2, 0, 1):
        assert number in writer.missing()
        writer.write(number, pieces[number], [BROKEN] if number == 2 else [])
    assert state_of(folder, settings) == UNFINISHED
    writer.finish()
    assert state_of(folder, settings) == COMPLETE
    return pieces


@pytest.mark.parametrize("file_format", stored_files.FILE_FORMATS)
def test_what_is_read_is_what_was_written(tmp_path: Path, file_format: FileFormat) -> None:
    pytest.importorskip("pyarrow" if file_format == "parquet" else "numpy")
    out = tmp_path / "out"
    pieces = written(out, file_format)
    found = read_embeddings(out)
    assert found.keys == ["c0", "c0", "c1", "c1", "c2", "c2", "c3", "c3"]
    assert found.sources == [source for one in pieces for source in one.rows.sources]
    assert np.array_equal(found.starts, np.concatenate([one.rows.starts for one in pieces]))
    assert np.array_equal(found.ends, np.concatenate([one.rows.ends for one in pieces]))
    for modality in ("audio", "video"):
        assert np.array_equal(found.values[modality], np.concatenate([one.values[modality] for one in pieces]))
        assert np.array_equal(found.present[modality], np.concatenate([one.rows.present[modality] for one in pieces]))
    assert found.starts.dtype == found.values["audio"].dtype == np.float32
    assert isinstance(found.values["audio"], np.memmap) == (file_format != "parquet")
    assert found.about["model"] == {"source": "runs/mine", "checkpoint": "newest", "weights_digest": "abc"}
    assert found.about["clips"] == 4
    assert found.about["left_out"] == {"undecodable": 1}
    with open(out / "left_out.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["c4", "clips/c4.mp4", "undecodable", "it is text"]]
    assert not (out / "parts").exists()
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("file_format", stored_files.FILE_FORMATS)
def test_what_is_fused_is_one_more_column(tmp_path: Path, file_format: FileFormat) -> None:
    pytest.importorskip("pyarrow" if file_format == "parquet" else "numpy")
    pieces, plain = written(tmp_path / "fused", file_format, FUSED), written(tmp_path / "plain", file_format)
    found, without = read_embeddings(tmp_path / "fused"), read_embeddings(tmp_path / "plain")
    assert list(found.values) == list(found.present) == ["audio", "video", "fused"]
    assert list(without.values) == list(without.present) == ["audio", "video"]
    assert np.array_equal(found.values["fused"], np.concatenate([one.values["fused"] for one in pieces]))
    assert found.present["fused"].tolist() == [False, True] * 4
    for modality in ("audio", "video"):
        assert np.array_equal(found.values[modality], np.concatenate([one.values[modality] for one in plain]))
    names = {path.name for path in (tmp_path / "fused").iterdir()} - {p.name for p in (tmp_path / "plain").iterdir()}
    assert names == ({"fused.npy"} if file_format == "npy" else set())
    if file_format == "safetensors":
        tensors = load_file(tmp_path / "fused/embeddings.safetensors")
        assert np.array_equal(tensors["fused"], found.values["fused"])
    assert found.about["fused"] == {"audio": 3, "video": 4}


def test_without_what_is_fused_a_folder_is_as_before_there_was_such_a_thing(tmp_path: Path) -> None:
    written(tmp_path, "npy")
    with open(tmp_path / "rows.csv", newline="") as file:
        assert file.readline() == "key,source,start,end,audio,video\r\n"
    described = "modalities rows hop_seconds precision file_format window_seconds clips_listed clips_per_part inputs"
    told = f"format state model inputs_digest {described} clips num_rows left_out files digest"
    assert list(json.loads((tmp_path / "about.json").read_text())) == told.split()


def test_other_tools_read_the_files(tmp_path: Path) -> None:
    pieces = written(tmp_path, "safetensors")
    tensors = load_file(tmp_path / "embeddings.safetensors")
    assert sorted(tensors) == ["audio", "video"]
    assert np.array_equal(tensors["video"], np.concatenate([one.values["video"] for one in pieces]))


def test_what_is_missing_of_a_parquet_is_null(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    written(tmp_path, "parquet")
    column = parquet.read_table(tmp_path / "embeddings.parquet")["video"].to_pylist()
    assert [row is None for row in column] == [False, True] * 4


def test_a_folder_of_nothing_but_left_out_clips_can_be_read(tmp_path: Path) -> None:
    for file_format in ("safetensors", "npy"):
        settings = replace(SETTINGS, clips_listed=1, file_format=file_format)
        writer = PartWriter(tmp_path / file_format, settings)
        writer.begin()
        writer.write(0, piece(), [BROKEN])
        writer.finish()
        assert len(read_embeddings(tmp_path / file_format)) == 0


def test_a_part_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path, SETTINGS)
    writer.begin()
    for number, one in enumerate((piece("c0", "c1"), piece("c2", "c3"))):
        writer.write(number, one, [])
    path = tmp_path / "parts/000000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    again = PartWriter(tmp_path, SETTINGS)
    again.begin()
    assert again.missing() == [0, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights_digest": "xyz"}, "the model's weights"),
        ({"inputs_digest": "xyz"}, "the inputs"),
        ({"hop_seconds": 2.0}, "--hop"),
        ({"file_format": "npy"}, "--format"),
        ({"modalities": {"audio": 3}}, "--modalities"),
        ({"rows": "clips"}, "--windows or --mean"),
        ({"precision": "bfloat16"}, "--precision"),
        ({"fused": {"audio": 3, "video": 4}}, "--fused"),
    ],
)
def test_other_settings_are_told_apart(tmp_path: Path, changes: dict, told: str) -> None:
    PartWriter(tmp_path, SETTINGS).begin()
    with pytest.raises(UserError, match=f"other settings .other: {told}"):
        state_of(tmp_path, replace(SETTINGS, **changes))
    assert state_of(tmp_path, replace(SETTINGS, model="moved/mine", inputs=["./clips"])) == UNFINISHED


def test_a_folder_with_another_column_is_told_apart(tmp_path: Path) -> None:
    PartWriter(tmp_path, FUSED).begin()
    assert state_of(tmp_path, FUSED) == UNFINISHED
    with pytest.raises(UserError, match=r"other settings .other: --fused\)"):
        state_of(tmp_path, SETTINGS)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match=r"something else \(thesis\.tex"):
        state_of(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="cannot be a folder"):
        state_of(tmp_path / "thesis.tex", SETTINGS)
    assert state_of(tmp_path / "new", SETTINGS) is None


def test_folders_that_cannot_be_read_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no embeddings"):
        read_embeddings(tmp_path)
    out = tmp_path / "out"
    PartWriter(out, SETTINGS).begin()
    with pytest.raises(UserError, match="unfinished"):
        read_embeddings(out)
    shutil.rmtree(out)
    written(out, "safetensors")
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    about = json.loads(whole["about.json"])
    damages = {
        "embeddings.safetensors": [whole["embeddings.safetensors"][:-4], None],
        "rows.csv": [whole["rows.csv"].replace(b"c0", b'c"', 1), whole["rows.csv"].replace(b"key", b"kex", 1)],
        "about.json": [
            json.dumps({**about, "modalities": {"audio": 2, "video": 3}}).encode(),
            json.dumps({**about, "fused": {"audio": 3, "video": 4}}).encode(),
            json.dumps({**about, "fused": "yes"}).encode(),
        ],
    }
    for name, versions in damages.items():
        for damaged in versions:
            (out / name).unlink() if damaged is None else (out / name).write_bytes(damaged)
            with pytest.raises(UserError, match="damaged"):
                read_embeddings(out)
        (out / name).write_bytes(whole[name])
    (out / "about.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="not written by this version"):
        read_embeddings(out)
