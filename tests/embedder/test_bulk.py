"""Fused embeddings of many clips against ``m.embed`` of each by itself."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from mavil import Embedder
from mavil.commands import embed as command
from mavil.data.media import DecodeError, encode_clip
from mavil.data.synthetic import synthetic_clip
from mavil.embedder import bulk_windows, reading
from mavil.embedder.bulk import Work
from mavil.embedder.bulk_decoding import decode_piece, decoded
from mavil.embedder.bulk_inputs import AllClips, Found, media_of
from mavil.embedder.stored import EmbeddingSet, read_embeddings
from mavil.embedder.windows import Span
from mavil.structs import UserError
from tests.embedder.conftest import (
    FPS,
    LONG_AUDIO,
    LONG_VIDEO,
    MakeModel,
    distance,
    long_recipe,
    recipe_of_sound,
    short_recipe,
)

PROJECTED = {"kind": "pretrain", "contrast": {"projection": {"hidden_width": 24, "width": 16}}}
MODELS = {
    "joint": short_recipe(),
    "bottleneck": short_recipe(fusion={"kind": "bottleneck"}),
    "no_fusion": short_recipe(fusion=None),
    "long_sound_projected": short_recipe(audio=LONG_AUDIO, task=PROJECTED),
    "long_picture_norms_alone": short_recipe(video=LONG_VIDEO, fusion={"kind": "joint", "alone_norms": True}),
}


def clip(number: int, sound_seconds: float | None, num_frames: int | None, silent: bool = False) -> bytes:
    """A media file of synthetic sound and 8 frames a second; ``None``: without."""
    made = synthetic_clip(0, number)
    sound = None if sound_seconds is None else made.waveform[: round(16_000 * sound_seconds)] * float(not silent)
    return encode_clip(None if num_frames is None else made.frames[:num_frames], FPS, sound)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What clips may be like; names are in the order of the clips."""
    folder = tmp_path_factory.mktemp("files")
    made = {
        "a_both.mp4": clip(0, 4.0, 32),
        "b_sound.m4a": clip(1, 2.4, None),
        "c_picture.mp4": clip(2, None, 19),
        "d_sound_ends.mp4": clip(3, 1.3, 32),
        "e_picture_ends.mp4": clip(4, 3.3, 8),
        "f_silent.mp4": clip(5, 1.5, 12, silent=True),
        "g_short.mp4": clip(6, 0.4, 3),
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return folder


def embedded(model: Embedder[Any], inputs: Sequence[Path], out: Path, batch: int = 16, **options: Any) -> EmbeddingSet:
    """What ``mavil embed`` makes of the inputs."""
    defaults = {"mean": False, "modalities": [], "hop_seconds": None, "file_format": "npy", "fused": True}
    named = [str(path) for path in inputs]
    clips = AllClips(named)
    settings = command.settings_for(model, clips, named, precision="float32", **{**defaults, **options})
    command.embed_into(out, model, clips, settings, Work(batch, workers=0), Console(quiet=True))
    return read_embeddings(out)


def rows_of(found: EmbeddingSet, path: Path) -> np.ndarray:
    return np.array([source == str(path) for source in found.sources])


@pytest.mark.parametrize("kind", MODELS)
def test_a_fused_row_is_what_the_embedder_gives_for_the_file(
    kind: str, make_model: MakeModel, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hop = {"joint": None, "bottleneck": 0.3}.get(kind, 0.7)
    if kind == "bottleneck":
        monkeypatch.setattr(bulk_windows, "MOST_WINDOWS", 3)
    model = make_model(MODELS[kind])
    found = embedded(model, [files], tmp_path / "out", batch=5, hop_seconds=hop)
    assert found.values["fused"].shape == (len(found), model.fused_width)
    for path in sorted(files.iterdir()):
        expected = model.embed(path, windows=True, hop_seconds=hop)
        rows = rows_of(found, path) & found.present["fused"]
        assert np.array_equal(found.starts[rows], expected.starts)
        assert np.array_equal(found.ends[rows], expected.ends)
        assert distance(found.values["fused"][rows], expected.values) < 1e-5, path
        halves = found.values["fused"][rows].reshape(-1, 2, model.fused_width // 2)
        for half, modality in enumerate(("audio", "video")):
            assert np.array_equal(halves[:, half].any(axis=1), expected.present[modality])
        for modality, method in (("audio", model.embed_audio), ("video", model.embed_video)):
            own = rows_of(found, path) & found.present[modality]
            if own.any():
                assert distance(found.values[modality][own], method(path, windows=True, hop_seconds=hop).values) < 1e-5
    held = np.stack([found.present[column] for column in ("audio", "video", "fused")])
    assert held.any(axis=0).all()
    assert not found.values["fused"][~found.present["fused"]].any()
    spans = list(zip(found.sources, found.starts.tolist(), found.ends.tolist(), strict=True))
    assert spans == sorted(spans)


def test_a_fused_row_per_clip_is_the_mean(make_model: MakeModel, files: Path, tmp_path: Path) -> None:
    model = make_model(MODELS["joint"])
    found = embedded(model, [files], tmp_path / "out", mean=True, hop_seconds=0.6)
    paths = sorted(files.iterdir())
    assert found.sources == [str(path) for path in paths]
    assert found.present["fused"].all()
    assert found.present["audio"].tolist() == [True, True, False, True, True, True, True]
    assert distance(found.values["fused"], model.embed(paths, hop_seconds=0.6)) < 1e-5
    assert distance(found.ends[:4], [4.0, 2.4, 19 / 8, 4.0]) < 0.07


def test_other_columns_are_as_without_it(make_model: MakeModel, files: Path, tmp_path: Path) -> None:
    model = make_model(MODELS["joint"])
    fused, plain = (embedded(model, [files], tmp_path / str(flag), fused=flag) for flag in (True, False))
    assert set(plain.values) == {"audio", "video"}
    kept = fused.present["audio"] | fused.present["video"]
    assert 0 < kept.sum() < len(fused)  # some rows have nothing else
    for modality in ("audio", "video"):
        assert distance(fused.values[modality][kept], plain.values[modality]) < 1e-5
        assert np.array_equal(fused.present[modality][kept], plain.present[modality])
    assert np.array_equal(fused.starts[kept], plain.starts)
    assert {"fused", *plain.about} == set(fused.about)
    assert fused.about["fused"] == {"audio": 32, "video": 32}
    assert fused.about["modalities"] == plain.about["modalities"]


@pytest.mark.parametrize("file_format", ["safetensors", "parquet"])
def test_every_format_holds_the_same(make_model: MakeModel, files: Path, tmp_path: Path, file_format: str) -> None:
    pytest.importorskip("pyarrow" if file_format == "parquet" else "numpy")
    model = make_model(MODELS["joint"])
    inputs = [files / "b_sound.m4a", files / "e_picture_ends.mp4"]
    found = embedded(model, inputs, tmp_path / "out", file_format=file_format)
    expected = [model.embed(path, windows=True) for path in inputs]
    rows = found.present["fused"]
    assert distance(found.values["fused"][rows], torch.cat([one.values for one in expected])) < 1e-5
    assert found.starts[rows].tolist() == torch.cat([one.starts for one in expected]).tolist()
    if file_format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        column = parquet.read_table(tmp_path / "out/embeddings.parquet")["fused"].to_pylist()
        assert [row is not None for row in column] == rows.tolist()
        return
    with open(tmp_path / "out/rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[4:] == ["audio", "video", "fused"]
    assert [line["fused"] for line in lines] == [str(int(flag)) for flag in rows]


def test_a_span_of_a_list_is_fused_as_the_file_cut_out_of_it(
    make_model: MakeModel, files: Path, tmp_path: Path
) -> None:
    model, film = make_model(MODELS["joint"]), files / "a_both.mp4"
    (tmp_path / "list.csv").write_text(f"path,start,end\n{film},1.5,3.7\n{film},,\n")
    found = embedded(model, [tmp_path / "list.csv"], tmp_path / "out")
    cut = model.embed(media_of(next(AllClips([str(tmp_path / "list.csv")]).read(0, 1)))[0], windows=True)
    whole = model.embed(film, windows=True)
    rows = found.present["fused"]
    assert distance(found.values["fused"][rows], torch.cat([cut.values, whole.values])) < 1e-5
    assert distance(found.starts[rows], torch.cat([cut.starts + 1.5, whole.starts])) < 1e-5


def test_a_stopped_job_goes_on_only_with_the_same_columns(
    make_model: MakeModel, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, calls = make_model(MODELS["joint"]), tmp_path / "out", [0]
    whole = embedded(model, [files], tmp_path / "whole")
    monkeypatch.setattr(command, "CLIPS_PER_PART", 2)
    with monkeypatch.context() as stopping:

        def stops(loaded: Embedder[Any]) -> Any:
            def embed(samples: Any) -> Any:
                calls[0] += 1
                if calls[0] == 6:
                    raise KeyboardInterrupt
                return loaded.encoder.embed(samples, joint=True)

            return embed

        stopping.setattr(command, "encoder_together_of", stops)
        with pytest.raises(KeyboardInterrupt):
            embedded(model, [files], out, batch=3)
    assert [path.stem for path in (out / "parts").iterdir()] == ["000000"]
    with pytest.raises(UserError, match=r"of other settings \(other: --fused\): name another folder"):
        embedded(model, [files], out, fused=False)
    found = embedded(model, [files], out)
    assert found.sources == whole.sources
    for column, values in whole.values.items():
        assert np.array_equal(found.present[column], whole.present[column])
        assert distance(found.values[column], values) < 1e-5
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"other: --fused"):
        embedded(model, [files], tmp_path / "whole", fused=False)
    embedded(model, [files], tmp_path / "plain", fused=False)
    with pytest.raises(UserError, match=r"other: --fused"):
        embedded(model, [files], tmp_path / "plain")


def test_what_cannot_be_fused_is_told(make_model: MakeModel, files: Path, tmp_path: Path) -> None:
    deaf = make_model(recipe_of_sound())
    with pytest.raises(
        UserError, match=r"^--fused: .* takes audio only, so there is nothing to fuse: leave --fused out$"
    ):
        embedded(deaf, [files / "a_both.mp4"], tmp_path / "out")
    both = make_model(MODELS["joint"])
    with pytest.raises(UserError, match=r"^--modalities video --fused: what is fused is of audio and video: leave one"):
        embedded(both, [files / "a_both.mp4"], tmp_path / "out", modalities=["video"])
    assert not (tmp_path / "out").exists()
    assert set(embedded(deaf, [files / "a_both.mp4"], tmp_path / "out", fused=False).values) == {"audio"}


def wanted_by(model: Embedder[Any], **changes: Any) -> bulk_windows.Wanted:
    reader = model.reader()
    return replace(bulk_windows.Wanted(dict(reader.lengths), reader.frame_window, fused=True), **changes)


def test_a_long_film_comes_in_pieces_and_is_probed_once(
    make_model: MakeModel, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probing reads a file to its end, so a film that is probed for every piece would take for ever."""
    probed: list[Any] = []
    real = bulk_windows.probe

    def probing(media: Any) -> Any:
        probed.append(media)
        return real(media)

    monkeypatch.setattr(bulk_windows, "probe", probing)
    monkeypatch.setattr(reading, "probe", probing)
    found = Found("a", "a.mp4", str(files / "a_both.mp4"))
    wanted = wanted_by(make_model(MODELS["joint"]), hop_seconds=0.1)
    pieces = list(decoded([(0, found)], wanted, 0, 60.0))
    sizes = [len(piece.places) + len(piece.spans) for piece in pieces]
    assert max(sizes) == bulk_windows.MOST_WINDOWS
    assert sum(sizes) == pieces[0].num_windows > 90
    assert [len(piece.spans) for piece in pieces if piece.spans] == [8, 8, 8, 7]
    assert all(len(piece.pairs) == len(piece.spans) for piece in pieces)
    assert probed == [str(files / "a_both.mp4")]


def test_what_both_windows_hold_is_decoded_once(
    make_model: MakeModel, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, bool]] = []
    real = bulk_windows.decode_clip

    def decoding(media: Any, sound: Any, frames: Any, *rest: Any) -> Any:
        asked.append((sound is not None, frames is not None))
        return real(media, sound, frames, *rest)

    monkeypatch.setattr(bulk_windows, "decode_clip", decoding)
    monkeypatch.setattr(reading, "decode_clip", decoding)
    found = Found("a", "a.mp4", str(files / "a_both.mp4"))
    piece = decode_piece((0, found, None), wanted_by(make_model(long_recipe())), 60.0)
    assert piece.reject is None
    assert (len(piece.places), len(piece.spans)) == (2, 1)
    assert asked == [(True, True)]


def test_a_clip_of_which_a_window_of_both_cannot_be_decoded_is_left_out(
    make_model: MakeModel, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any) -> None:
        raise DecodeError("undecodable", "it is scratched")

    monkeypatch.setattr(reading, "decode_clip", damaged)
    found = Found("a", "a.mp4", str(files / "a_both.mp4"))
    for model in (make_model(MODELS["joint"]), make_model(long_recipe())):
        (*_, last) = decoded([(0, found)], wanted_by(model), 0, 60.0)
        assert last.reject is not None
        assert (last.reject.cause, last.reject.detail) == ("undecodable", "it is scratched")


def test_a_track_without_sound_costs_its_clip_and_not_the_job(make_model: MakeModel, files: Path) -> None:
    """Packets may say that they last no time at all."""
    wanted, media = wanted_by(make_model(MODELS["joint"])), str(files / "b_sound.m4a")
    windows = bulk_windows.Windows({"audio": 0.0}, spans=(Span(0.0, 0.0),))
    with pytest.raises(DecodeError, match="too_short: it has no sound there"):
        bulk_windows.decode_windows(media, "b_sound.m4a", windows, wanted)
    clip = reading.Reader(wanted.lengths).known(media, "b_sound.m4a", {"audio": 0.0})
    with pytest.raises(
        UserError, match=r"b_sound\.m4a: from 0 s on: it has no sound there \(too_short\): give a media file"
    ):
        clip.sample(Span(0.0, 0.0))
