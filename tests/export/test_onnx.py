"""ONNX files under onnxruntime: raw waveform or frames in, our embeddings out, for batches of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mavil
from mavil.data.spectrogram import SpectrogramKind
from mavil.export import onnx_graphs
from mavil.export.onnx_graphs import OPSET, convert, write_onnx
from mavil.export.parts import Exported
from mavil.export.waveforms import WaveformFrontEnd
from mavil.structs import Modality, UserError
from tests.support.exports import films, random_export, waveforms, written_export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(path: Path, **inputs: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (values,) = session.run(["embedding"], {name: tensor.numpy() for name, tensor in inputs.items()})
    return np.asarray(values)


@pytest.fixture(scope="module")
def exported() -> Exported:
    return random_export()


@pytest.fixture(scope="module")
def written(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    lines = write_onnx(folder / "onnx", exported, "abc")
    assert [line.partition(": ")[0] for line in lines] == [str(folder / f"onnx/{m}.onnx") for m in ("audio", "video")]
    assert [path.name for path in folder.iterdir()] == ["onnx"]
    return folder / "onnx"


def test_onnxruntime_gives_our_embeddings(tmp_path: Path, exported: Exported, written: Path) -> None:
    ours = mavil.load(written_export(tmp_path / "out", exported), device="cpu", output="numpy")
    for num_clips in (1, 3):
        sound, frames = waveforms(num_clips, exported.recipe), films(num_clips, exported.recipe)
        expected = ours.embed_audio(list(sound), 16_000)
        np.testing.assert_allclose(run(written / "audio.onnx", waveform=sound), expected, atol=1e-4)
        expected = ours.embed_video(list(frames.movedim(2, -1)), 4)
        np.testing.assert_allclose(run(written / "video.onnx", frames=frames), expected, atol=1e-4)


def test_the_file_says_what_it_is(written: Path) -> None:
    model = onnx.load(written / "audio.onnx")
    assert [(one.domain, one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")] == [("", OPSET)]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert {name: told[name] for name in ("sample_rate_hz", "window_seconds", "log_mel_mean", "weights_sha256")} == {
        "sample_rate_hz": "16000",
        "window_seconds": "0.66",
        "log_mel_mean": "-4.0",
        "weights_sha256": "abc",
    }
    (entry,) = model.graph.input
    assert [size.dim_param or size.dim_value for size in entry.type.tensor_type.shape.dim] == ["batch", 10_560]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("kind", ["kaldi_povey", "slaney"])
def test_other_front_ends(tmp_path: Path, kind: SpectrogramKind) -> None:
    front_end = WaveformFrontEnd(10_560, 72, 32, -4.0, 9.0, kind).eval()
    sound = waveforms(3, random_export().recipe)
    convert(front_end, sound[:2], "audio", tmp_path / "it.onnx", {})
    np.testing.assert_allclose(run(tmp_path / "it.onnx", waveform=sound), front_end(sound).numpy(), atol=1e-4)


def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, exported: Exported, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: torch.nn.Module, example: torch.Tensor, modality: Modality, path: Path, told: object) -> None:
        model = onnx.load(written / "audio.onnx")
        table = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        table.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table) + 1, table.name))
        onnx.save(model, path)

    monkeypatch.setattr(onnx_graphs, "convert", wrong)
    with pytest.raises(UserError, match="away from torch"):
        write_onnx(tmp_path / "onnx", exported, "abc")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graphs, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"no_such_package.*mavil\[onnx\]"):
        write_onnx(tmp_path / "onnx", exported, "abc")
    assert not list(tmp_path.iterdir())
